"""Budgets of API keys: what a key may use within a window, compared with the usage ledger rather than with
memory.

The usage of a key is what the ledger reported a moment ago, what this process has used since, and what its
requests in flight have reserved. The ledger is queried again every few seconds, which is how several workers
learn of each other: at the very end of a budget, each may admit what it does not know of yet.

Without a ledger that responds a budget cannot be enforced, and requests of a key that has one are rejected.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import trio

from qproxy.access.api_keys import ApiKey, Quota
from qproxy.ledger import LedgerError, UsageLedger, WindowUsage
from qproxy.limits.token_bucket import REQUESTS, USD, Amounts
from qproxy.limits.windows import WINDOWS, UsageWindow
from qproxy.wire.errors import QproxyError, RequestError

CACHE_SECONDS = 5.0
"""Age up to which the ledger's last report is used."""
log = logging.getLogger("qproxy.access")


def add(total: dict[str, float], amounts: Amounts, sign: int = 1) -> None:
    """Add amounts to a total, or subtract them."""
    for unit, amount in amounts.items():
        total[unit] = total.get(unit, 0) + sign * amount


@dataclass(slots=True)
class KeyUsage:
    """The usage of one key, as this process knows it."""

    name: str
    windows: Mapping[str, WindowUsage] = field(default_factory=dict)
    requested_at: float = float("-inf")
    """When the ledger was queried; Trio's clock."""
    used: dict[str, float] = field(default_factory=dict)
    """Since then, by unit."""
    reserved: dict[str, float] = field(default_factory=dict)
    lock: trio.Lock = field(default_factory=trio.Lock, repr=False)

    def is_stale(self, budgets: tuple[Quota, ...], now: float) -> bool:
        """Return whether the ledger must be queried first."""
        if trio.current_time() - self.requested_at > CACHE_SECONDS:
            return True
        for budget in budgets:
            window, usage = WINDOWS[budget.window], self.windows.get(budget.window)
            if usage is None or (not window.rolling and window.start(now) != usage.start):
                return True
        return False

    def raise_if_exhausted(self, budget: Quota, now: float, *, running: bool = False) -> None:
        """Raise a RequestError with status 429 if the budget is exhausted; a running request needs no other
        request."""
        usage = self.windows[budget.window]
        for unit, limit in budget.limits.items():
            total = usage.used.get(unit, 0) + self.used.get(unit, 0) + self.reserved.get(unit, 0)
            if total >= limit and not (running and unit == REQUESTS):
                raise exhausted_error(self.name, limit, unit, WINDOWS[budget.window], usage.resets_at, now)


def exhausted_error(
    name: str, limit: float, unit: str, window: UsageWindow, resets_at: float, now: float
) -> RequestError:
    """Return the error of a request whose key has exhausted a budget."""
    when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(resets_at))
    resets = f"The first of it is available again at {when}." if window.rolling else f"It resets at {when}."
    return RequestError(
        f"API key {name!r} has exhausted its budget of {_describe(limit, unit)} per {window.label}. {resets}",
        status=429,
        type="insufficient_quota",
        code="insufficient_quota",
        retry_after=max(1.0, resets_at - now),
    )


def _describe(limit: float, unit: str) -> str:
    return f"{limit:,.15g} US dollars" if unit == USD else f"{limit:,} {unit}"


@dataclass(eq=False, slots=True)
class BudgetReservation:
    """The amounts that one request has reserved of its key's budgets."""

    usage: KeyUsage
    amounts: dict[str, float]
    settled: bool = False

    def add(self, amounts: Amounts) -> None:
        """Reserve more for a running request."""
        add(self.amounts, amounts)
        add(self.usage.reserved, amounts)

    def settle(self, used: Amounts) -> None:
        """Exchange the reservation for what was used, once."""
        if self.settled:
            return
        self.settled = True
        add(self.usage.reserved, self.amounts, -1)
        add(self.usage.used, used)


class BudgetTracker:
    """The usage of all keys that have budgets."""

    def __init__(self, ledger: UsageLedger | None, *, wall_clock: Callable[[], float] = time.time) -> None:
        self._ledger = ledger
        self._wall_clock = wall_clock
        self._usage_by_key: dict[str, KeyUsage] = {}

    def __repr__(self) -> str:
        return f"<BudgetTracker {len(self._usage_by_key)} keys>"

    async def reserve(self, key: ApiKey, amounts: Amounts) -> BudgetReservation:
        """Reserve the amounts of a request. Raises a RequestError with status 429 if a budget is
        exhausted."""
        usage, now = await self._usage_of(key), self._wall_clock()
        for budget in key.budgets:
            usage.raise_if_exhausted(budget, now)
        add(usage.reserved, amounts)
        return BudgetReservation(usage, dict(amounts))

    async def check_running(self, key: ApiKey) -> None:
        """Raise a RequestError with status 429 if a running request may not continue."""
        usage, now = await self._usage_of(key), self._wall_clock()
        for budget in key.budgets:
            usage.raise_if_exhausted(budget, now, running=True)

    async def _usage_of(self, key: ApiKey) -> KeyUsage:
        """Return the key's usage, with a recent report of the ledger."""
        usage, now = self._usage_by_key.setdefault(key.label, KeyUsage(key.label)), self._wall_clock()
        if usage.is_stale(key.budgets, now):
            async with usage.lock:
                if usage.is_stale(key.budgets, now):
                    await self._refresh(usage, key, now)
        return usage

    async def _refresh(self, usage: KeyUsage, key: ApiKey, now: float) -> None:
        before = dict(usage.used)
        try:
            if self._ledger is None:
                raise LedgerError("the setting ledger is none")
            windows = {budget.window for budget in key.budgets}
            usage.windows = await self._ledger.key_usage(key.label, windows, now)
        except LedgerError as error:
            log.error("cannot read budget: key=%s: %s", key.label, error)
            message = f"The budget of API key {key.label!r} cannot be read; see the qproxy log."
            raise QproxyError(message, status=503, code="budget_unavailable", retry_after=5) from None
        add(usage.used, before, -1)
        usage.requested_at = trio.current_time()
