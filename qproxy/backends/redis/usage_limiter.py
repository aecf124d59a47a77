"""Rate limits and budgets of API keys for all processes of all machines.

Both are checked and counted in one exchange. The server counts what budgets have used; the ledger of this
machine supplies what was used before the server knew of a key, or what a server has lost: a lower bound,
which all processes may send as often as they like.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Sequence

import trio

from qproxy.access.api_keys import ApiKey
from qproxy.access.budgets import exhausted_error
from qproxy.access.rate_limits import NOTHING, raise_if_limited
from qproxy.backends.redis.exchange import BudgetLimit
from qproxy.backends.redis.subject import Subject
from qproxy.backends.redis.subjects import Subjects
from qproxy.ledger import LedgerError, UsageLedger
from qproxy.limits.token_bucket import REQUESTS, Amounts, RateLimitGrant
from qproxy.limits.windows import WINDOWS
from qproxy.wire.endpoints.api import RateLimitStatus

SEED_SECONDS = 60.0
"""Age up to which what the ledger supplied is not supplied again."""
log = logging.getLogger("qproxy.backends")


class RedisUsageLimiter:
    """The limits of all keys."""

    def __init__(self, subjects: Subjects, ledger: UsageLedger | None) -> None:
        self._subjects = subjects
        self._ledger = ledger
        self._seeded_at: dict[str, float] = {}

    def __repr__(self) -> str:
        return f"<RedisUsageLimiter {self._subjects!r}>"

    async def reserve(self, key: ApiKey, amounts: Amounts) -> RedisReservation:
        if not key.is_limited:
            return RedisReservation(self, key, None, {})
        subject = self._subject(key)
        if key.budgets:
            await self._seed(key, subject)
        grant = await self._subjects.reserve(subject, amounts)
        self.check(key, subject, grant, amounts)
        bounded = {unit: min(amount, key.rate_limits.get(unit, amount)) for unit, amount in amounts.items()}
        return RedisReservation(self, key, subject, bounded)

    async def check_running(self, key: ApiKey, subject: Subject) -> None:
        """Raise a RequestError with status 429 if a running request may not continue."""
        grant = await self._subjects.reserve(subject, NOTHING, unchecked=REQUESTS)
        self.check(key, subject, grant, NOTHING)

    def check(self, key: ApiKey, subject: Subject, grant: RateLimitGrant, amounts: Amounts) -> None:
        """Raise a RequestError with status 429 unless the amounts were granted."""
        if grant.granted:
            return
        exhausted = subject.exhausted
        if exhausted is not None:
            row, window = exhausted.budget, WINDOWS[exhausted.budget.window]
            resets_at = exhausted.resets_at or window.end(exhausted.now)
            raise exhausted_error(key.label, row.limit, row.unit, window, resets_at, exhausted.now)
        raise_if_limited(key.label, subject.limits, grant, amounts)

    def rate_limits(self, key: ApiKey) -> Sequence[RateLimitStatus]:
        if not key.rate_limits:
            return []
        subject = self._subject(key)
        available = subject.available()
        return [
            RateLimitStatus(
                unit, limit, max(0, int(available[unit])), (limit - min(limit, available[unit])) * 60 / limit
            )
            for unit, limit in key.rate_limits.items()
        ]

    def settle(self, subject: Subject) -> None:
        """Send what has changed. Never waits."""
        self._subjects.settle(subject)

    async def supply(self, key: ApiKey) -> None:
        """Send what the ledger knows of a key with budgets, without a request. Never waits for the server."""
        subject = self._subject(key)
        await self._seed(key, subject)
        self._subjects.renew(subject)

    def _subject(self, key: ApiKey) -> Subject:
        """Return the subject of a key's name: a new key of the same name continues its budgets."""
        name = hashlib.sha256(key.label.encode()).hexdigest()[:32]
        budgets = [
            BudgetLimit(budget.window, unit, limit)
            for budget in key.budgets
            for unit, limit in budget.limits.items()
        ]
        return self._subjects.get(name, key.rate_limits, budgets)

    async def _seed(self, key: ApiKey, subject: Subject) -> None:
        """Supply what the ledger knows of the key with the next exchange."""
        now = trio.current_time()
        if self._ledger is None or now - self._seeded_at.get(key.label, -SEED_SECONDS) < SEED_SECONDS:
            return
        self._seeded_at[key.label] = now
        try:
            windows = await self._ledger.key_usage(
                key.label, {budget.window for budget in key.budgets}, time.time()
            )
        except LedgerError as error:  # the server's counts are enough, unless it has lost them
            log.warning("cannot read the ledger for a budget: key=%s: %s", key.label, error)
            return
        subject.seeds = {
            (window, unit): amount for window, usage in windows.items() for unit, amount in usage.used.items()
        }


class RedisReservation:
    """The amounts that one request has reserved."""

    def __init__(
        self, limiter: RedisUsageLimiter, key: ApiKey, subject: Subject | None, amounts: Amounts
    ) -> None:
        self._limiter = limiter
        self._key = key
        self._subject = subject
        self._amounts = dict(amounts)
        self._settled = False

    async def extend(self, amounts: Amounts) -> None:
        subject = self._subject
        if subject is None:
            return
        subject.take(amounts)
        more = {unit: amount for unit, amount in amounts.items() if unit != REQUESTS}
        subject.hold(more)
        for unit, amount in more.items():
            self._amounts[unit] = self._amounts.get(unit, 0) + amount
        await self._limiter.check_running(self._key, subject)

    def settle(self, used: Amounts, *, attempted: bool, answered: bool) -> None:
        if self._settled or self._subject is None:
            return
        self._settled = True
        subject = self._subject
        back = {unit: used.get(unit, 0) - amount for unit, amount in self._amounts.items()}
        subject.take({**back, REQUESTS: 0 if attempted else -1})
        subject.hold(self._amounts, -1)
        if answered:
            subject.use({**used, REQUESTS: 1})
        self._limiter.settle(subject)
