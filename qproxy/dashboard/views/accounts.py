"""Accounts: how each is, in words; what it has used of its windows; and signing one in.

How an account is comes from this process, which hears of the others' within a second (`accounts.sharing`); what it has
used comes from the ledger, which is everybody's.  A sign-in is the server's own (`auth.logins`): the admin routes show
the same one.
"""

from __future__ import annotations

import io
import sqlite3
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from urllib.parse import quote, urlsplit

import trio

from qproxy.accounts import Account
from qproxy.auth.credentials import StaticKey
from qproxy.auth.device_flow import Progress
from qproxy.auth.oauth_source import OAuthSource
from qproxy.auth.status import Status
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
from qproxy.server.routes.admin_login import source_of
from qproxy.server.state import Parts

GOOD, BUSY = ("ready", "refreshing"), ("full", "paced", "retrying", "ending", "not_saved", "resting")
MOST_MODELS = 20


@dataclass(frozen=True, slots=True)
class Card:
    """One account for a page.  Times are Unix time."""

    name: str
    kind: str
    plan: str
    host: str
    state: str
    words: str
    level: str
    """good, odd or bad."""
    in_flight: int
    requests: int
    failures: int
    expires_at: float | None
    resting_until: float | None
    refused: tuple[tuple[str, float, str], ...]
    """Models that it is not asked for, until when and why."""
    quota: str | None
    quota_reset_at: float | None
    last_error: str | None
    last_error_at: float | None
    signs_in: bool
    pace: tuple[Bar, ...]
    path: str
    allowance: Mapping[str, int] = field(default_factory=dict)


class AccountPages:
    """The list, and the sign-in of one."""

    def __init__(self, parts: Parts, pages: Pages, wall: Callable[[], float]) -> None:
        self._parts = parts
        self._pages = pages
        self._wall = wall

    def views(self) -> Iterator[tuple[str, str, Callable[..., Awaitable[Reply]]]]:
        yield "GET", "/accounts", self._list
        yield "GET", "/accounts/<name>/login", self._login
        yield "GET", "/accounts/<name>/login/progress", self._progress
        yield "POST", "/accounts/<name>/login", self._start
        yield "POST", "/accounts/<name>/login/cancel", self._cancel

    def cards(self, now: float) -> list[Card]:
        """The accounts as this process sees them."""
        states, at = self._parts.account_states(), trio.current_time()
        return [
            card(account, states[account.name], at, now - at)
            for account in self._parts.relay.accounts.accounts
        ]

    async def _list(self, visit: Visit) -> Reply:
        now = self._wall()
        found = await ledger.ask(self._parts, partial(_uses, now=now))
        cards = self.cards(now)
        windows = {
            each.name: [] if isinstance(found, Told) else windows_of(each, found, now) for each in cards
        }
        return self._pages.page(
            visit,
            "accounts.html",
            cards=cards,
            windows=windows,
            now=now,
            trouble=found.words if isinstance(found, Told) else "",
        )

    async def _login(self, visit: Visit, name: str) -> Reply:
        source_of(self._parts, name)
        progress = self._parts.logins.progress(name)
        code = qr_code(progress.verification_uri) if progress and progress.verification_uri else ""
        return self._pages.page(visit, "signing_in.html", qr=code, **_told(name, progress))

    async def _progress(self, visit: Visit, name: str) -> Reply:
        source_of(self._parts, name)
        return self._pages.page(visit, "progress.html", **_told(name, self._parts.logins.progress(name)))

    async def _start(self, visit: Visit, name: str) -> Reply:
        await self._parts.logins.start(source_of(self._parts, name))
        return redirect(_path(name))

    async def _cancel(self, visit: Visit, name: str) -> Reply:
        source_of(self._parts, name)
        await self._parts.logins.cancel(name)
        return redirect(_path(name))


def card(account: Account, state: str, at: float, ahead: float) -> Card:
    """An account at a moment of Trio's clock, which the wall clock is so much ahead of."""
    status = account.source.status() if isinstance(account.source, OAuthSource) else None
    rest = account.rests.get("")
    resting = rest.until + ahead if rest is not None and rest.until > at else None
    refused = sorted((m, r.until + ahead, r.why) for m, r in account.rests.items() if m and r.until > at)
    url = account.source.base_url if isinstance(account.source, StaticKey) else ""
    return Card(
        name=account.name,
        kind="Qwen account" if status else "own server" if account.family == "open" else "key",
        plan=account.plan,
        host=urlsplit(url).hostname or "",
        state=state,
        words=_state_words(account, state, status, at),
        level="good" if state in GOOD else "odd" if state in BUSY else "bad",
        in_flight=account.in_flight,
        requests=account.requests,
        failures=account.failures,
        expires_at=status.expires_at if status else None,
        resting_until=resting,
        refused=tuple(refused[:MOST_MODELS]),
        quota=account.quota,
        quota_reset_at=None if rest is None or rest.reset is None else rest.reset + ahead,
        last_error=account.last_error,
        last_error_at=account.last_error_at,
        signs_in=status is not None,
        pace=tuple(_pace(account, at)),
        path=_path(account.name),
        allowance=account.allowance,
    )


def _state_words(account: Account, state: str, status: Status | None, at: float) -> str:
    """What the state means now."""
    if state == "down":
        return f"Its server does not answer; asked again in {words.span(account.circuit.wait(at))}."
    if state == "resting":
        why = account.rests[""].why if "" in account.rests else "a refusal"
        return f"Resting after {why}; asked again in {words.span(account.resting_until('') - at)}."
    if state == "full":
        return "Has as many requests as it may have at once."
    if state == "paced":
        return "At its limit for this minute."
    if status is not None:
        return f"{status.words[:1].upper()}{status.words[1:].rstrip('.')}."
    return "Ready to serve."


def _pace(account: Account, at: float) -> Iterator[Bar]:
    """What this minute has used of the account's own limits."""
    for bucket, what in ((account.pace.requests, "requests"), (account.pace.tokens, "tokens")):
        if bucket is not None:
            taken = bucket.capacity - bucket.left(at)
            yield charts.used("this minute", max(0.0, taken), bucket.capacity, words.number, what)


def _uses(connection: sqlite3.Connection, *, now: float) -> dict[str, dict[str, Use]]:
    """A question to the ledger: each window's uses by account."""
    return {name: {use.name: use for use in used(connection, "account", name, now)} for name in WINDOWS}


def windows_of(card: Card, uses: Mapping[str, Mapping[str, Use]], now: float) -> list[dict[str, Any]]:
    """What an account has used within each window, against its allowance where one is told."""
    found = []
    for name, window in WINDOWS.items():
        use = uses[name].get(card.name, Use(card.name, name))
        bar = charts.used(window.words, use.requests, card.allowance.get(name), words.number, "requests")
        ends = None if window.rolling else window.ends(now)
        found.append({"bar": bar, "tokens": use.tokens, "cost": use.cost, "ends": ends})
    return found


def _path(name: str) -> str:
    return f"/dashboard/accounts/{quote(name, safe='')}/login"


def _told(name: str, progress: Progress | None) -> dict[str, Any]:
    return {"name": name, "path": _path(name), "progress": progress}


def qr_code(text: str) -> str:
    """A text as an SVG drawing that needs no style of its own."""
    drawn = io.BytesIO()
    import segno  # late: only a sign-in needs it

    segno.make(text, error="m", micro=False).save(
        drawn, kind="svg", xmldecl=False, svgns=True, omitsize=True, border=3, dark="#000", light="#fff", svgclass="qr",
        lineclass=None,
    )  # fmt: skip
    return drawn.getvalue().decode()
