"""The limits of API keys on one machine: rate limits in a store of levels, budgets from the usage ledger."""

from __future__ import annotations

from qproxy.access.api_keys import ApiKey
from qproxy.access.budgets import BudgetReservation, BudgetTracker
from qproxy.access.rate_limits import KeyRateLimiter, KeyRateLimiters, RateLimitReservation, RateLimitStore
from qproxy.ledger import UsageLedger
from qproxy.limits.token_bucket import REQUESTS, TOKENS, Amounts
from qproxy.wire.endpoints.api import RateLimitStatus


class LocalUsageLimiter:
    """The limits of all keys."""

    def __init__(self, store: RateLimitStore, ledger: UsageLedger | None) -> None:
        self.rate_limiters = KeyRateLimiters(store)
        self.budgets = BudgetTracker(ledger)

    def __repr__(self) -> str:
        return f"<LocalUsageLimiter {self.budgets!r}>"

    async def reserve(self, key: ApiKey, amounts: Amounts) -> LocalReservation:
        budget = await self.budgets.reserve(key, amounts) if key.budgets else None
        limiter = self.rate_limiters.for_key(key)
        try:
            rate = None if limiter is None else await limiter.reserve(amounts.get(TOKENS, 0))
        except BaseException:
            if budget is not None:
                budget.settle({})
            raise
        return LocalReservation(self, key, budget, limiter, rate)

    def rate_limits(self, key: ApiKey) -> list[RateLimitStatus]:
        limiter = self.rate_limiters.for_key(key)
        return [] if limiter is None else limiter.status()


class LocalReservation:
    """The amounts that one request has reserved."""

    def __init__(
        self,
        limits: LocalUsageLimiter,
        key: ApiKey,
        budget: BudgetReservation | None,
        limiter: KeyRateLimiter | None,
        rate: RateLimitReservation | None,
    ) -> None:
        self._limits = limits
        self._key = key
        self._budget = budget
        self._limiter = limiter
        self._rate = rate

    async def extend(self, amounts: Amounts) -> None:
        if self._limiter is not None and self._rate is not None:
            self._rate.tokens += amounts.get(TOKENS, 0)
            await self._limiter.extend(amounts)
        if self._budget is not None:
            self._budget.add({unit: amount for unit, amount in amounts.items() if unit != REQUESTS})
            await self._limits.budgets.check_running(self._key)

    def settle(self, used: Amounts, *, attempted: bool, answered: bool) -> None:
        if self._rate is not None:
            self._rate.settle(used.get(TOKENS, 0), counts=attempted)
        if self._budget is not None:
            self._budget.settle({**used, REQUESTS: 1} if answered else {})
