"""Token buckets: amounts per minute, consumed at once and refilled evenly. Pure: callers pass the time.

`Amounts` is the vocabulary of everything that is limited: numbers by unit (requests, tokens; money, seconds,
characters and pictures need nothing but their names). A set of buckets grants all amounts of a reservation or
none of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

MINUTE = 60.0
ROUNDING = 1e-6
"""Fraction of one unit: sums of fractions fall short of a whole by less, and no clock can wait for it."""
Amounts: TypeAlias = Mapping[str, float]
"""Numbers by unit."""
REQUESTS, TOKENS, USD = "requests", "tokens", "usd"


@dataclass(frozen=True, slots=True)
class RateLimitGrant:
    """The result of a reservation."""

    granted: bool
    available: Amounts
    """What remains of every limited unit after it; negative where more was used than was available."""


class TokenBucket:
    """A level that refills to `capacity` within a minute."""

    def __init__(self, capacity: float, now: float) -> None:
        self.capacity = capacity
        self._tokens = float(capacity)
        self._updated_at = now

    def __repr__(self) -> str:
        return f"<TokenBucket {self._tokens:.1f}/{self.capacity}>"

    def available(self, now: float) -> float:
        """Return the level at `now`."""
        return min(self.capacity, self._tokens + self.capacity * max(0.0, now - self._updated_at) / MINUTE)

    def wait(self, count: float, now: float, ahead: float = 0.0) -> float:
        """Return the seconds until `count` can be taken after `ahead` was; both count up to a minute's
        worth."""
        return refill_seconds(self.capacity, self.available(now), count, ahead)

    def acquire(self, count: float, now: float) -> None:
        """Subtract `count`, which may exceed the level or be negative."""
        self.set_level(self.available(now) - count, now)

    def set_level(self, left: float, now: float) -> None:
        """Set the level, up to the capacity."""
        self._tokens, self._updated_at = min(float(self.capacity), left), now


def refill_seconds(capacity: float, available: float, count: float, ahead: float = 0.0) -> float:
    """Return the seconds until a bucket with this much available can give `count` after `ahead`."""
    short = min(count, capacity) + ahead - available
    return short * MINUTE / capacity if short > ROUNDING else 0.0


def try_acquire(buckets: Mapping[str, TokenBucket], amounts: Amounts, now: float) -> RateLimitGrant:
    """Take the amounts from the buckets, up to a minute's worth of each, or nothing if one must wait."""
    granted = True
    for unit, bucket in buckets.items():
        if bucket.wait(amounts.get(unit, 0.0), now):
            granted = False
    if granted:
        for unit, bucket in buckets.items():
            if unit in amounts:
                bucket.acquire(min(amounts[unit], bucket.capacity), now)
    return RateLimitGrant(granted, {unit: bucket.available(now) for unit, bucket in buckets.items()})
