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

from qproxy.access.api_keys import ApiKey, Quota
from qproxy.ledger import LedgerError, UsageLedger
from qproxy.ledger.usage import oldest_request, usage_by
from qproxy.limits.windows import WINDOWS, UsageWindow
from qproxy.wire.errors import QproxyError, RequestError

CACHE_SECONDS = 5.0
"""How long what the ledger said is taken for true."""
log = logging.getLogger("qproxy.budgets")


@dataclass(frozen=True, slots=True)
class WindowUsage:
    """What the ledger says of one key and window."""

    start: float
    requests: int = 0
    tokens: int = 0
    resets_at: float = 0.0
    """When there is something again; Unix seconds."""


@dataclass(slots=True)
class KeyUsage:
    """One key's running account."""

    name: str
    windows: Mapping[str, WindowUsage] = field(default_factory=dict)
    requested_at: float = float("-inf")
    """When the ledger was; Trio's clock."""
    requests: int = 0
    tokens: int = 0
    """Used since then."""
    reserved_requests: int = 0
    reserved_tokens: int = 0
    lock: trio.Lock = field(default_factory=trio.Lock, repr=False)

    def is_stale(self, budgets: tuple[Quota, ...], now: float) -> bool:
        """Whether the ledger must be asked before anything is said."""
        if trio.current_time() - self.requested_at > CACHE_SECONDS:
            return True
        for budget in budgets:
            window, usage = WINDOWS[budget.window], self.windows.get(budget.window)
            if usage is None or (not window.rolling and window.start(now) != usage.start):
                return True
        return False

    def raise_if_exhausted(self, budget: Quota, now: float) -> None:
        """RequestError 429 when nothing is left of a budget."""
        usage = self.windows[budget.window]
        uses = (
            (budget.requests, usage.requests + self.requests + self.reserved_requests, "requests"),
            (budget.tokens, usage.tokens + self.tokens + self.reserved_tokens, "tokens"),
        )
        for limit, use, what in uses:
            if limit is not None and use >= limit:
                raise _exhausted_error(self.name, limit, what, WINDOWS[budget.window], usage.resets_at, now)


def _exhausted_error(
    name: str, limit: int, what: str, window: UsageWindow, renewed: float, now: float
) -> RequestError:
    when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(renewed))
    back = f"The first of it comes back at {when}." if window.rolling else f"It is renewed at {when}."
    within = f"in {window.label}" if window.rolling else f"a {window.label}"
    return RequestError(
        f"The API key {name!r} has used up its budget of {limit:,} {what} {within}. {back}",
        status=429,
        type="insufficient_quota",
        code="insufficient_quota",
        retry_after=max(1.0, renewed - now),
    )


@dataclass(eq=False, slots=True)
class BudgetReservation:
    """What one request has reserved on a tab."""

    usage: KeyUsage
    tokens: int
    settled: bool = False

    def add(self, tokens: int) -> None:
        """The request goes on, and has used more."""
        self.tokens += tokens
        self.usage.reserved_tokens += tokens

    def settle(self, used: int, *, counts: bool) -> None:
        """Exchange the estimate for `used` tokens; `counts` says whether the request reached a model.  Once."""
        if self.settled:
            return
        self.settled = True
        self.usage.reserved_requests -= 1
        self.usage.reserved_tokens -= self.tokens
        if counts:
            self.usage.requests += 1
            self.usage.tokens += used


class BudgetTracker:
    """The tabs of all keys that have budgets."""

    def __init__(self, ledger: UsageLedger | None, *, wall_clock: Callable[[], float] = time.time) -> None:
        self._ledger = ledger
        self._wall_clock = wall_clock
        self._usage_by_key: dict[str, KeyUsage] = {}

    def __repr__(self) -> str:
        return f"<Budgets of {len(self._usage_by_key)} keys>"

    async def reserve(self, key: ApiKey, tokens: int) -> BudgetReservation:
        """Reserve a request of about so many tokens.  RequestError 429 when a budget is used up."""
        usage, now = await self._usage_of(key), self._wall_clock()
        for budget in key.budgets:
            usage.raise_if_exhausted(budget, now)
        usage.reserved_requests += 1
        usage.reserved_tokens += tokens
        return BudgetReservation(usage, tokens)

    async def check_running(self, key: ApiKey) -> None:
        """RequestError 429 when the tokens of a budget are used up, for a request that has begun and goes on."""
        usage, now = await self._usage_of(key), self._wall_clock()
        for budget in key.budgets:
            usage.raise_if_exhausted(replace(budget, requests=None), now)

    async def _usage_of(self, key: ApiKey) -> KeyUsage:
        """The key's tab, with what the ledger said a moment ago."""
        usage, now = self._usage_by_key.setdefault(key.label, KeyUsage(key.label)), self._wall_clock()
        if usage.is_stale(key.budgets, now):
            async with usage.lock:
                if usage.is_stale(key.budgets, now):
                    await self._refresh(usage, key, now)
        return usage

    async def _refresh(self, usage: KeyUsage, key: ApiKey, now: float) -> None:
        before = usage.requests, usage.tokens
        try:
            if self._ledger is None:
                raise LedgerError("the setting `ledger` is off")
            names = {budget.window for budget in key.budgets}
            usage.windows = await self._ledger.query(
                partial(_exceeded, key=key.label, windows=names, now=now)
            )
        except LedgerError as error:
            log.error("the budget of the key %s cannot be read: %s", key.label, error)
            message = f"The budget of the API key {key.label!r} cannot be read now; the server's log has the reason."
            raise QproxyError(message, status=503, code="budget_unavailable", retry_after=5) from None
        usage.requests -= before[0]
        usage.tokens -= before[1]
        usage.requested_at = trio.current_time()


def _exceeded(
    connection: sqlite3.Connection, *, key: str, windows: set[str], now: float
) -> dict[str, WindowUsage]:
    """A question to the ledger."""
    found = {}
    for name in windows:
        window = WINDOWS[name]
        uses, begins = usage_by(connection, "key", name, now, only=key), window.start(now)
        first = oldest_request(connection, key, window, now) if window.rolling else None
        renewed = window.end(now if first is None else first)
        requests, tokens = (uses[0].requests, uses[0].tokens) if uses else (0, 0)
        found[name] = WindowUsage(begins, requests, tokens, renewed)
    return found
