"""The accounts: their state, their usage per window, and logins.

States are those of this process, which receives other workers' changes within a second (`accounts.sync`);
usage is the ledger's, which all workers share. Logins are the server's (`auth.login_sessions`), the same as
in the admin routes.
"""

from __future__ import annotations

import io
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlsplit

import trio

from qproxy.accounts import Account
from qproxy.accounts.report import rules_by_model
from qproxy.auth.credentials import StaticKey
from qproxy.auth.device_flow import LoginProgress
from qproxy.auth.oauth_source import OAuthSource
from qproxy.dashboard import charts, formatting
from qproxy.dashboard.auth import PageRequest
from qproxy.dashboard.charts import Bar
from qproxy.dashboard.rendering import PageRenderer, redirect
from qproxy.dashboard.views import ledger
from qproxy.dashboard.views.ledger import LedgerUnavailable, by_name
from qproxy.ledger.usage import UsageRow
from qproxy.limits.windows import WINDOWS
from qproxy.server.http_response import HTTPResponse
from qproxy.server.routes.admin_login import oauth_source
from qproxy.server.state import StateHolder
from qproxy.telemetry.audit import AuditEntry
from qproxy.wire.errors import RequestError

MAX_MODELS = 20


@dataclass(frozen=True, slots=True)
class AccountCard:
    """One account on a page; times are Unix time."""

    name: str
    kind: str
    plan: str
    host: str
    state: str
    message: str
    severity: str
    """ok, unknown, warning or error."""
    in_flight: int
    """Of all processes."""
    requests: int
    failures: int
    expires_at: float | None
    cooldown_until: float | None
    refused_models: tuple[tuple[str, float, str], ...]
    """Models that cool down: name, end and reason."""
    quota: str | None
    quota_reset_at: float | None
    last_error: str | None
    last_error_at: float | None
    last_message: str | None
    last_success_at: float | None
    uses_login: bool
    rate: tuple[Bar, ...]
    path: str
    """Of its login."""
    wake_path: str
    """Of the form that ends what makes the account wait; "" if nothing does."""
    learned_rules: Mapping[str, list[str]] = field(default_factory=dict)
    """Request rules that rejections have taught, by model."""
    forget_path: str = ""
    allowance: Mapping[str, int] = field(default_factory=dict)


class AccountPages:
    """The list of accounts, and the login of one."""

    def __init__(self, server: StateHolder, pages: PageRenderer, wall_clock: Callable[[], float]) -> None:
        self._server = server
        self._pages = pages
        self._wall_clock = wall_clock

    def views(self) -> Iterator[tuple[str, str, Callable[..., Awaitable[HTTPResponse]]]]:
        yield "GET", "/accounts", self._list
        yield "GET", "/accounts/<name>/login", self._login
        yield "GET", "/accounts/<name>/login/progress", self._progress
        yield "POST", "/accounts/<name>/login", self._start
        yield "POST", "/accounts/<name>/login/cancel", self._cancel
        yield "POST", "/accounts/<name>/wake", self._wake
        yield "POST", "/accounts/<name>/rules/forget", self._forget_rules

    def cards(self, now: float) -> list[AccountCard]:
        """Return the accounts in the state of this process."""
        at = trio.current_time()
        return [account_card(account, at, now - at) for account in self._server.state.relay.accounts.accounts]

    async def _list(self, visit: PageRequest) -> HTTPResponse:
        now = self._wall_clock()
        found = await ledger.ask(
            self._server.state, lambda file: file.usage_by("account", tuple(WINDOWS), now)
        )
        uses = {} if isinstance(found, LedgerUnavailable) else by_name(found)
        cards = self.cards(now)
        windows = {
            each.name: [] if isinstance(found, LedgerUnavailable) else windows_of(each, uses, now)
            for each in cards
        }
        return self._pages.page(
            visit,
            "accounts.html",
            cards=cards,
            windows=windows,
            now=now,
            trouble=found.message if isinstance(found, LedgerUnavailable) else "",
        )

    async def _login(self, visit: PageRequest, name: str) -> HTTPResponse:
        oauth_source(self._server.state, name)
        progress = await self._server.state.login_sessions.progress(name)
        code = qr_code(progress.verification_uri) if progress and progress.verification_uri else ""
        return self._pages.page(visit, "signing_in.html", qr=code, **_message_of(name, progress))

    async def _progress(self, visit: PageRequest, name: str) -> HTTPResponse:
        oauth_source(self._server.state, name)
        return self._pages.page(
            visit,
            "progress.html",
            **_message_of(name, await self._server.state.login_sessions.progress(name)),
        )

    async def _start(self, visit: PageRequest, name: str) -> HTTPResponse:
        state = self._server.state
        _, new = await state.login_sessions.start(oauth_source(state, name))
        if new:
            await state.audit.record(AuditEntry(visit.actor, "account.login", name, "started"))
        return redirect(_path(name))

    async def _cancel(self, visit: PageRequest, name: str) -> HTTPResponse:
        oauth_source(self._server.state, name)
        if await self._server.state.login_sessions.cancel(name) is not None:
            entry = AuditEntry(visit.actor, "account.login", name, "cancelled")
            await self._server.state.audit.record(entry)
        return redirect(_path(name))

    async def _wake(self, visit: PageRequest, name: str) -> HTTPResponse:
        """End an account's cooldowns here; the next exchange of states ends them for all processes."""
        now = self._wall_clock()
        self._account(name).wake(now, now - trio.current_time())
        await self._server.state.relay.accounts.start_sync()
        await self._server.state.audit.record(AuditEntry(visit.actor, "account.wake", name))
        return redirect("/dashboard/accounts")

    async def _forget_rules(self, visit: PageRequest, name: str) -> HTTPResponse:
        """Forget what an account's rejections have taught, likewise for all processes."""
        self._account(name).learned_rules.forget()
        await self._server.state.relay.accounts.start_sync()
        await self._server.state.audit.record(AuditEntry(visit.actor, "account.forget_rules", name))
        return redirect("/dashboard/accounts")

    def _account(self, name: str) -> Account:
        """Return an account by its name. Raises RequestError 404 if there is none."""
        accounts = self._server.state.relay.accounts.accounts
        account = next((account for account in accounts if account.name == name), None)
        if account is None:
            raise RequestError(f"Unknown account {name[:100]!r}.", status=404, code="account_not_found")
        return account


def account_card(account: Account, at: float, ahead: float) -> AccountCard:
    """Return an account's card at a time of Trio's clock; the wall clock is `ahead` of it."""
    status = account.source.status() if isinstance(account.source, OAuthSource) else None
    condition, cooldown = account.condition(at), account.cooldowns.get("")
    cooldown_until = cooldown.until + ahead if cooldown is not None and cooldown.until > at else None
    refused = sorted(
        (m, r.until + ahead, r.reason) for m, r in account.cooldowns.items() if m and r.until > at
    )
    waits = cooldown_until is not None or refused or account.circuit_breaker.wait(at)
    url = account.source.base_url if isinstance(account.source, StaticKey) else ""
    return AccountCard(
        name=account.name,
        kind="Qwen account" if status else "own server" if account.provider_family == "open" else "key",
        plan=account.plan,
        host=urlsplit(url).hostname or "",
        state=condition.state,
        message=_sentence(status.message if status and condition.state == "ready" else condition.message),
        severity=condition.severity,
        in_flight=account.in_flight + account.in_flight_elsewhere,
        requests=account.requests,
        failures=account.failures,
        expires_at=status.expires_at if status else None,
        cooldown_until=cooldown_until,
        refused_models=tuple(refused[:MAX_MODELS]),
        quota=account.quota,
        quota_reset_at=None if cooldown is None or cooldown.reset_at is None else cooldown.reset_at + ahead,
        last_error=account.last_error,
        last_error_at=account.last_error_at,
        last_message=account.last_message,
        last_success_at=account.last_success_at,
        uses_login=status is not None,
        rate=tuple(_rate_text(account, at)),
        path=_path(account.name),
        wake_path=_wake_path(account.name) if waits else "",
        learned_rules=rules_by_model(account.learned_rules),
        forget_path=f"/dashboard/accounts/{quote(account.name, safe='')}/rules/forget",
        allowance=account.allowance,
    )


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:].rstrip('.')}."


def _rate_text(account: Account, at: float) -> Iterator[Bar]:
    """Yield bars of the usage of the account's limits per minute."""
    for bucket, what in (
        (account.rate_limiter.requests, "requests"),
        (account.rate_limiter.tokens, "tokens"),
    ):
        if bucket is not None:
            taken = bucket.capacity - bucket.available(at)
            yield charts.usage_bars(
                "this minute", max(0.0, taken), bucket.capacity, formatting.format_number, what
            )


def windows_of(
    card: AccountCard, uses: Mapping[str, Mapping[str, UsageRow]], now: float
) -> list[dict[str, Any]]:
    """Return an account's usage of each window, with its allowance if configured."""
    found = []
    for name, window in WINDOWS.items():
        use = uses[name].get(card.name, UsageRow(card.name, name))
        bar = charts.usage_bars(
            window.label, use.requests, card.allowance.get(name), formatting.format_number, "requests"
        )
        ends = None if window.rolling else window.end(now)
        found.append(
            {
                "bar": bar,
                "tokens": use.tokens,
                "cost": formatting.format_cost(use.cost, use.unpriced),
                "ends": ends,
            }
        )
    return found


def _path(name: str) -> str:
    return f"/dashboard/accounts/{quote(name, safe='')}/login"


def _wake_path(name: str) -> str:
    return f"/dashboard/accounts/{quote(name, safe='')}/wake"


def _message_of(name: str, progress: LoginProgress | None) -> dict[str, Any]:
    return {"name": name, "path": _path(name), "progress": progress}


def qr_code(text: str) -> str:
    """Return a text as a QR code in SVG without inline styles."""
    drawn = io.BytesIO()
    import segno  # imported late: only a login needs it

    segno.make(text, error="m", micro=False).save(
        drawn, kind="svg", xmldecl=False, svgns=True, omitsize=True, border=3, dark="#000", light="#fff",
        svgclass="qr",
        lineclass=None,
    )  # fmt: skip
    return drawn.getvalue().decode()
