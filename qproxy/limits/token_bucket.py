"""A bucket of what may be used a minute: taken from at once, refilled evenly.  No clock: whoever asks says the time."""

from __future__ import annotations

MINUTE = 60.0
ROUNDING = 1e-6
"""Of one: sums of fractions fall short of a whole by less, and no clock can wait for it."""


class TokenBucket:
    """A count that refills to `capacity` in a minute."""

    def __init__(self, capacity: int, now: float) -> None:
        self.capacity = capacity
        self._tokens = float(capacity)
        self._updated_at = now

    def __repr__(self) -> str:
        return f"<Bucket {self._tokens:.1f}/{self.capacity}>"

    def available(self, now: float) -> float:
        return min(self.capacity, self._tokens + self.capacity * max(0.0, now - self._updated_at) / MINUTE)

    def wait(self, count: float, now: float, ahead: float = 0.0) -> float:
        """Seconds until `count` can be taken, after `ahead` has been; more than a minute's worth counts as that much."""
        short = min(count, self.capacity) + ahead - self.available(now)
        return short * MINUTE / self.capacity if short > ROUNDING else 0.0

    def acquire(self, count: float, now: float) -> None:
        """Also more than is left, and less than nothing."""
        self.set_level(self.available(now) - count, now)

    def set_level(self, left: float, now: float) -> None:
        """Have so much left."""
        self._tokens, self._updated_at = min(float(self.capacity), left), now
