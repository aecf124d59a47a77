"""What a client key may use within a window, in requests and tokens: held against the ledger, not against memory.

A key's `Tab` knows what the ledger said a moment ago, what this process has used since, and what its requests under
way have reserved.  The ledger is asked again every few seconds, which is how several workers hear of each other: at
the very end of a budget each may let through what it has not heard of yet.

Without a ledger that answers, a budget cannot be kept, and a key that has one is refused rather than let loose.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

import trio

from qproxy.access.api_keys import Budget, Key
from qproxy.ledger import Ledger, LedgerError
from qproxy.ledger.usage import oldest, used
from qproxy.limits.windows import WINDOWS, Window
from qproxy.wire.errors import QproxyError, RequestError

FRESH_SECONDS = 5.0
"""How long what the ledger said is taken for true."""
log = logging.getLogger("qproxy.budgets")


@dataclass(frozen=True, slots=True)
class Spent:
    """What the ledger says of one key and window."""

    begins: float
    requests: int = 0
    tokens: int = 0
    renewed: float = 0.0
    """When there is something again; Unix seconds."""


@dataclass(slots=True)
class Tab:
    """One key's running account."""

    name: str
    spent: Mapping[str, Spent] = field(default_factory=dict)
    asked: float = float("-inf")
    """When the ledger was; Trio's clock."""
    requests: int = 0
    tokens: int = 0
    """Used since then."""
    held_requests: int = 0
    held_tokens: int = 0
    lock: trio.Lock = field(default_factory=trio.Lock, repr=False)

    def stale(self, budgets: tuple[Budget, ...], now: float) -> bool:
        """Whether the ledger must be asked before anything is said."""
        if trio.current_time() - self.asked > FRESH_SECONDS:
            return True
        for budget in budgets:
            window, spent = WINDOWS[budget.window], self.spent.get(budget.window)
            if spent is None or (not window.rolling and window.begins(now) != spent.begins):
                return True
        return False

    def check(self, budget: Budget, now: float) -> None:
        """RequestError 429 when nothing is left of a budget."""
        spent = self.spent[budget.window]
        uses = (
            (budget.requests, spent.requests + self.requests + self.held_requests, "requests"),
            (budget.tokens, spent.tokens + self.tokens + self.held_tokens, "tokens"),
        )
        for limit, use, what in uses:
            if limit is not None and use >= limit:
                raise _used_up(self.name, limit, what, WINDOWS[budget.window], spent.renewed, now)


def _used_up(name: str, limit: int, what: str, window: Window, renewed: float, now: float) -> RequestError:
    when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(renewed))
    back = f"The first of it comes back at {when}." if window.rolling else f"It is renewed at {when}."
    within = f"in {window.words}" if window.rolling else f"a {window.words}"
    return RequestError(
        f"The API key {name!r} has used up its budget of {limit:,} {what} {within}. {back}",
        status=429,
        type="insufficient_quota",
        code="insufficient_quota",
        retry_after=max(1.0, renewed - now),
    )


@dataclass(eq=False, slots=True)
class Claim:
    """What one request has reserved on a tab."""

    tab: Tab
    tokens: int
    settled: bool = False

    def add(self, tokens: int) -> None:
        """The request goes on, and has used more."""
        self.tokens += tokens
        self.tab.held_tokens += tokens

    def settle(self, used: int, *, counts: bool) -> None:
        """Exchange the estimate for `used` tokens; `counts` says whether the request reached a model.  Once."""
        if self.settled:
            return
        self.settled = True
        self.tab.held_requests -= 1
        self.tab.held_tokens -= self.tokens
        if counts:
            self.tab.requests += 1
            self.tab.tokens += used


class Budgets:
    """The tabs of all keys that have budgets."""

    def __init__(self, ledger: Ledger | None, *, wall: Callable[[], float] = time.time) -> None:
        self._ledger = ledger
        self._wall = wall
        self._tabs: dict[str, Tab] = {}

    def __repr__(self) -> str:
        return f"<Budgets of {len(self._tabs)} keys>"

    async def claim(self, key: Key, tokens: int) -> Claim:
        """Reserve a request of about so many tokens.  RequestError 429 when a budget is used up."""
        tab, now = await self._tab(key), self._wall()
        for budget in key.budgets:
            tab.check(budget, now)
        tab.held_requests += 1
        tab.held_tokens += tokens
        return Claim(tab, tokens)

    async def going_on(self, key: Key) -> None:
        """RequestError 429 when the tokens of a budget are used up, for a request that has begun and goes on."""
        tab, now = await self._tab(key), self._wall()
        for budget in key.budgets:
            tab.check(replace(budget, requests=None), now)

    async def _tab(self, key: Key) -> Tab:
        """The key's tab, with what the ledger said a moment ago."""
        tab, now = self._tabs.setdefault(key.label, Tab(key.label)), self._wall()
        if tab.stale(key.budgets, now):
            async with tab.lock:
                if tab.stale(key.budgets, now):
                    await self._refresh(tab, key, now)
        return tab

    async def _refresh(self, tab: Tab, key: Key, now: float) -> None:
        before = tab.requests, tab.tokens
        try:
            if self._ledger is None:
                raise LedgerError("the setting `ledger` is off")
            names = {budget.window for budget in key.budgets}
            tab.spent = await self._ledger.ask(partial(_spent, key=key.label, windows=names, now=now))
        except LedgerError as error:
            log.error("the budget of the key %s cannot be read: %s", key.label, error)
            message = f"The budget of the API key {key.label!r} cannot be read now; the server's log has the reason."
            raise QproxyError(message, status=503, code="budget_unavailable", retry_after=5) from None
        tab.requests -= before[0]
        tab.tokens -= before[1]
        tab.asked = trio.current_time()


def _spent(connection: sqlite3.Connection, *, key: str, windows: set[str], now: float) -> dict[str, Spent]:
    """A question to the ledger."""
    found = {}
    for name in windows:
        window = WINDOWS[name]
        uses, begins = used(connection, "key", name, now, only=key), window.begins(now)
        first = oldest(connection, key, window, now) if window.rolling else None
        renewed = window.ends(now if first is None else first)
        requests, tokens = (uses[0].requests, uses[0].tokens) if uses else (0, 0)
        found[name] = Spent(begins, requests, tokens, renewed)
    return found
