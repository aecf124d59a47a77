"""The limits by which one process decides while the server cannot be used: its share of what was left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from qproxy.backends.redis.exchange import IN_FLIGHT, BudgetLimit
from qproxy.limits.token_bucket import Amounts, TokenBucket, try_acquire


class Share:
    """A share of each level and of each budget; it does not see the other processes' shares."""

    def __init__(
        self,
        levels: Mapping[str, TokenBucket],
        budgets: Sequence[BudgetLimit],
        usage: Mapping[tuple[str, str], float] | None,
        processes: int,
        now: float,
    ) -> None:
        """`usage` is that of all processes, by window and unit; None if it is not known."""
        self._buckets = {unit: TokenBucket(level.capacity / processes, now) for unit, level in levels.items()}
        for unit, bucket in self._buckets.items():
            bucket.set_level(levels[unit].available(now) / processes, now)
        self._budgets = [row for row in budgets if row.window != IN_FLIGHT]
        self._slots = {
            row: max(1, row.limit // processes) for row in budgets if row.window == IN_FLIGHT and row.limit
        }
        self._left = {}
        if usage is not None:
            for row in self._budgets:
                self._left[row] = max(0.0, row.limit - usage[row.window, row.unit]) / processes

    def __repr__(self) -> str:
        return f"<Share {self._buckets}>"

    @property
    def knows_budgets(self) -> bool:
        """Return whether there is anything to decide about the budgets by."""
        return len(self._left) == len(self._budgets)

    def exhausted(self, held: Amounts) -> BudgetLimit | None:
        """Return a budget of whose share nothing is left; `held` is what this process has in flight."""
        for row, slots in self._slots.items():
            if held.get(row.unit, 0) >= slots:
                return row
        return next((row for row, left in self._left.items() if left <= 0), None)

    def reserve(self, amounts: Amounts, now: float) -> bool:
        """Take the amounts, or return False."""
        if not try_acquire(self._buckets, amounts, now).granted:
            return False
        for row in self._left:
            self._left[row] -= amounts.get(row.unit, 0)
        return True

    def available(self, now: float) -> Amounts:
        """Return what is left of each level."""
        return {unit: bucket.available(now) for unit, bucket in self._buckets.items()}
