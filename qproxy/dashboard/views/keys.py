"""API keys: listing, creation and revocation.

The keys are those of `qproxy keys`. A new key is shown once, in the response to the form.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any

from qproxy.access import api_keys
from qproxy.access.api_keys import ApiKey, ApiKeyStore, ApiKeyStoreBusy, ApiKeyStoreError, Quota
from qproxy.dashboard import charts, formatting
from qproxy.dashboard.auth import PageRequest
from qproxy.dashboard.charts import Bar
from qproxy.dashboard.rendering import PageRenderer, redirect
from qproxy.dashboard.views import ledger
from qproxy.dashboard.views.ledger import LedgerUnavailable, by_name
from qproxy.ledger.usage import UsageRow
from qproxy.limits.windows import WINDOWS
from qproxy.server.http_response import HTTPResponse
from qproxy.server.state import StateHolder
from qproxy.wire.errors import RequestError

FIELDS = ("name", "expires", "rpm", "tpm", "models", "window", "requests", "tokens")


class KeyPages:
    """The page of API keys and its forms."""

    def __init__(self, server: StateHolder, pages: PageRenderer, wall_clock: Callable[[], float]) -> None:
        self._server = server
        self._pages = pages
        self._wall_clock = wall_clock

    def views(self) -> Iterator[tuple[str, str, Callable[..., Awaitable[HTTPResponse]]]]:
        yield "GET", "/keys", self._list
        yield "POST", "/keys", self._create
        yield "POST", "/keys/revoke", self._revoke

    async def _list(self, visit: PageRequest) -> HTTPResponse:
        return await self._page(visit)

    async def _create(self, visit: PageRequest) -> HTTPResponse:
        store = self._writable_store()
        try:
            wanted = key_form_fields(visit.form, self._wall_clock())
            key, secret = await store.create(**wanted)
            await self._record(visit, "key.create", key)
        except ValueError as error:
            return await self._page(visit, 400, complaint=str(error))
        except ApiKeyStoreBusy as error:
            raise _busy(error) from None
        except ApiKeyStoreError as error:
            return await self._page(visit, 409, complaint=str(error))
        return await self._page(visit, 201, made=key, secret=secret)

    async def _revoke(self, visit: PageRequest) -> HTTPResponse:
        try:
            revoked = await self._writable_store().revoke(visit.form.get("id", ""))
            await self._record(visit, "key.revoke", revoked)
        except ApiKeyStoreBusy as error:
            raise _busy(error) from None
        except ApiKeyStoreError as error:
            return await self._page(visit, 409, complaint=str(error))
        return redirect("/dashboard/keys")

    async def _record(self, visit: PageRequest, action: str, key: ApiKey) -> None:
        await self._server.state.audit.record(api_keys.audit_entry(visit.actor, action, key))

    def _writable_store(self) -> ApiKeyStore:
        store = self._server.state.authentication.api_keys
        if not store.writable:
            raise RequestError("API keys cannot be changed here: set keys_file.", code="no_key_file")
        return store

    async def _page(
        self,
        visit: PageRequest,
        status: int = 200,
        *,
        complaint: str = "",
        made: ApiKey | None = None,
        secret: str = "",
    ) -> HTTPResponse:
        store, now = self._server.state.authentication.api_keys, self._wall_clock()
        known = sorted(store.list_keys(), key=lambda key: (key.status(now) != "active", -key.created))
        found = await ledger.ask(self._server.state, lambda file: file.usage_by("key", tuple(WINDOWS), now))
        uses = {} if isinstance(found, LedgerUnavailable) else by_name(found)
        return self._pages.page(
            visit,
            "keys.html",
            status,
            rows=[_row(key, uses, now) for key in known],
            complaint=complaint,
            made=made,
            secret=secret,
            filled={name: visit.form.get(name, "") if complaint else "" for name in FIELDS},
            windows=WINDOWS,
            writable=store.writable,
            now=now,
        )


def _busy(error: ApiKeyStoreBusy) -> RequestError:
    return RequestError(f"The change was not confirmed: {error}", status=503, code="key_file_busy")


def key_form_fields(form: Mapping[str, str], now: float) -> dict[str, Any]:
    """Parse a new key's fields from a form. Raises ValueError."""
    given = {name: form.get(name, "").strip() for name in FIELDS}
    if not given["name"]:
        raise ValueError("A name is required.")
    api_keys.check_key_name(given["name"])
    if given["window"] and given["window"] not in WINDOWS:
        raise ValueError("Unknown budget window.")
    numbers = {name: _count(given[name], name) for name in ("rpm", "tpm", "requests", "tokens")}
    budgets: tuple[Quota, ...] = ()
    if numbers["requests"] or numbers["tokens"]:
        if not given["window"]:
            raise ValueError("A budget requires a window.")
        budgets = (Quota(given["window"], numbers["requests"], numbers["tokens"]),)
    return {
        "name": given["name"],
        "expires": _end(given["expires"], now),
        "rpm": numbers["rpm"],
        "tpm": numbers["tpm"],
        "models": tuple(filter(None, (pattern.strip() for pattern in given["models"].split(",")))),
        "budgets": budgets,
    }


def _count(text: str, name: str) -> int | None:
    if not text:
        return None
    if not (text.isascii() and text.isdecimal() and int(text[:18]) > 0 and len(text) <= 15):
        raise ValueError(f"The field {name} must be a positive integer or empty.")
    return int(text)


def _end(text: str, now: float) -> int | None:
    if not text:
        return None
    try:
        end = api_keys.parse_expiry(text, now)
    except ValueError:
        raise ValueError("Expiry must be a duration (30d, 12h) or a date (2027-01-31).") from None
    if not now < end < 1e11:
        raise ValueError("The expiry is in the past or too far in the future.")
    return end


def _row(key: ApiKey, uses: Mapping[str, Mapping[str, UsageRow]], now: float) -> dict[str, Any]:
    state = key.status(now)
    month = uses.get("month", {}).get(key.label)
    return {
        "key": key,
        "state": state,
        "level": "ok" if state == "active" else "warning" if state == "expired" else "error",
        "created": time.strftime("%Y-%m-%d", time.gmtime(key.created)) if key.created else "in the settings",
        "revocable": bool(key.created) and state != "revoked",
        "month": month,
        "budgets": [bar for budget in key.budgets for bar in _bars(key, budget, uses)],
    }


def _bars(key: ApiKey, budget: Quota, uses: Mapping[str, Mapping[str, UsageRow]]) -> Iterator[Bar]:
    """Yield bars of the usage of a budget."""
    use = uses.get(budget.window, {}).get(key.label) or UsageRow(key.label, budget.window)
    label = WINDOWS[budget.window].label
    if budget.requests is not None:
        yield charts.usage_bars(label, use.requests, budget.requests, formatting.format_number, "requests")
    if budget.tokens is not None:
        yield charts.usage_bars(label, use.tokens, budget.tokens, formatting.format_number, "tokens")
    if budget.usd is not None:
        yield charts.usage_bars(label, use.cost, budget.usd, formatting.format_money, "US dollars")
