"""The keys of our clients: seen, made (shown once) and revoked.

The file is that of `qproxy keys`, changed by the same functions; it is forced to the disk, so that happens in a thread.
A new key is in the answer to the form and nowhere else: looking again does not show it.
"""

from __future__ import annotations

import re
import sqlite3
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import trio

from qproxy.access import api_keys as keys
from qproxy.access.api_keys import Budget, Key, KeyFileError
from qproxy.dashboard import charts
from qproxy.dashboard import formatting as words
from qproxy.dashboard.auth import Visit
from qproxy.dashboard.charts import Bar
from qproxy.dashboard.rendering import Pages, redirect
from qproxy.dashboard.views import ledger
from qproxy.dashboard.views.ledger import Told
from qproxy.ledger.usage import Use, used
from qproxy.limits.windows import WINDOWS
from qproxy.server.http_response import Reply
from qproxy.server.state import Parts
from qproxy.wire.errors import RequestError

T = TypeVar("T")
NAME = re.compile(r"[^\x00-\x1f\x7f]{1,60}\Z")
FILE_SECONDS = 5.0
FIELDS = ("name", "expires", "rpm", "tpm", "models", "window", "requests", "tokens")


class KeyPages:
    """The page, and what its forms do."""

    def __init__(self, parts: Parts, pages: Pages, wall: Callable[[], float]) -> None:
        self._parts = parts
        self._pages = pages
        self._wall = wall

    def views(self) -> Iterator[tuple[str, str, Callable[..., Awaitable[Reply]]]]:
        yield "GET", "/keys", self._list
        yield "POST", "/keys", self._create
        yield "POST", "/keys/revoke", self._revoke

    async def _list(self, visit: Visit) -> Reply:
        return await self._page(visit)

    async def _create(self, visit: Visit) -> Reply:
        path = self._path()
        try:
            wanted = fields(visit.form, self._wall())
            key, secret = await _in_time(partial(keys.create, path, **wanted))
        except ValueError as error:
            return await self._page(visit, 400, complaint=str(error))
        except KeyFileError as error:
            return await self._page(visit, 409, complaint=str(error))
        return await self._page(visit, 201, made=key, secret=secret)

    async def _revoke(self, visit: Visit) -> Reply:
        try:
            await _in_time(partial(keys.revoke, self._path(), visit.form.get("id", "")))
        except KeyFileError as error:
            return await self._page(visit, 409, complaint=str(error))
        return redirect("/dashboard/keys")

    def _path(self) -> Path:
        path = self._parts.door.keyring.path
        if path is None:
            raise RequestError("This server has no file of keys (the setting keys_file).", code="no_key_file")
        return path

    async def _page(
        self,
        visit: Visit,
        status: int = 200,
        *,
        complaint: str = "",
        made: Key | None = None,
        secret: str = "",
    ) -> Reply:
        keyring, now = self._parts.door.keyring, self._wall()
        known = sorted(keyring.known(), key=lambda key: (key.state(now) != "active", -key.created))
        found = await ledger.ask(self._parts, partial(_uses, now=now))
        uses = {} if isinstance(found, Told) else found
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
            writable=keyring.path is not None,
            now=now,
        )


async def _in_time(change: Callable[[], T]) -> T:
    """Change the file in a thread; a RequestError when somebody else has its lock for too long."""
    with trio.move_on_after(FILE_SECONDS):
        return await trio.to_thread.run_sync(change, abandon_on_cancel=True)
    raise RequestError(
        "The file of keys is in use by somebody else: look in a moment whether it has changed.",
        status=503, code="key_file_busy",
    )  # fmt: skip


def fields(form: Mapping[str, str], now: float) -> dict[str, Any]:
    """A new key's fields from a form; ValueError says what is wrong with one."""
    given = {name: form.get(name, "").strip() for name in FIELDS}
    if not NAME.match(given["name"]):
        raise ValueError("A key needs a name of at most 60 characters.")
    if given["window"] and given["window"] not in WINDOWS:
        raise ValueError("There is no such window for a budget.")
    numbers = {name: _count(given[name], name) for name in ("rpm", "tpm", "requests", "tokens")}
    budgets: tuple[Budget, ...] = ()
    if numbers["requests"] or numbers["tokens"]:
        if not given["window"]:
            raise ValueError("A budget needs a window.")
        budgets = (Budget(given["window"], numbers["requests"], numbers["tokens"]),)
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
        raise ValueError(f"The field {name} takes a whole number above 0, or nothing.")
    return int(text)


def _end(text: str, now: float) -> int | None:
    if not text:
        return None
    try:
        end = keys.until(text, now)
    except ValueError:
        raise ValueError("A key ends after a span (30d, 12h) or on a date (2027-01-31).") from None
    if not now < end < 1e11:
        raise ValueError("That end is over already, or too far away.")
    return end


def _uses(connection: sqlite3.Connection, *, now: float) -> dict[str, dict[str, Use]]:
    """A question to the ledger: each window's uses by key."""
    return {name: {use.name: use for use in used(connection, "key", name, now)} for name in WINDOWS}


def _row(key: Key, uses: Mapping[str, Mapping[str, Use]], now: float) -> dict[str, Any]:
    state = key.state(now)
    month = uses.get("month", {}).get(key.label)
    return {
        "key": key,
        "state": state,
        "level": "good" if state == "active" else "odd" if state == "expired" else "bad",
        "created": time.strftime("%Y-%m-%d", time.gmtime(key.created)) if key.created else "in the settings",
        "revocable": bool(key.created) and state != "revoked",
        "month": month,
        "budgets": [bar for budget in key.budgets for bar in _bars(key, budget, uses)],
    }


def _bars(key: Key, budget: Budget, uses: Mapping[str, Mapping[str, Use]]) -> Iterator[Bar]:
    """What is used of a budget."""
    use = uses.get(budget.window, {}).get(key.label) or Use(key.label, budget.window)
    label = WINDOWS[budget.window].words
    if budget.requests is not None:
        yield charts.used(label, use.requests, budget.requests, words.number, "requests")
    if budget.tokens is not None:
        yield charts.used(label, use.tokens, budget.tokens, words.number, "tokens")
