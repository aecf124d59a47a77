"""The rate limits of one account: requests and tokens per minute, so that its server does not have to reject
requests.

A token bucket each. A request takes one request and an estimate of its tokens before it is sent, and the
estimate is exchanged for what was used when it ends. Where several processes use the same account, the levels
that they share (`shared_state`) are put into these buckets, which are this process's view of them.
"""

from __future__ import annotations

from typing import NamedTuple

from qproxy.limits.token_bucket import REQUESTS, TOKENS, Amounts, TokenBucket


class QueuedDemand(NamedTuple):
    """The amounts that requests ahead in the queue will take."""

    requests: int = 0
    tokens: int = 0


NO_DEMAND = QueuedDemand()


class AccountRateLimiter:
    """Limits of one account; without any it never makes a request wait."""

    def __init__(self, rpm: int | None = None, tpm: int | None = None) -> None:
        self._tpm = tpm or 0
        self.requests = TokenBucket(rpm, 0.0) if rpm else None
        self.tokens = TokenBucket(tpm, 0.0) if tpm else None
        limits = ((REQUESTS, rpm), (TOKENS, tpm))
        self.limits: Amounts = {unit: limit for unit, limit in limits if limit}
        self.released: dict[str, float] = {}
        """Amounts returned since the start, less what was used beyond the estimates."""

    def __repr__(self) -> str:
        return f"<AccountRateLimiter {self.requests} {self.tokens}>"

    @property
    def is_limited(self) -> bool:
        return self.requests is not None or self.tokens is not None

    def describe(self) -> str:
        """Return the limits as text."""
        limits = [(self.requests, "requests"), (self.tokens, "tokens")]
        return " and ".join(f"{bucket.capacity} {what}" for bucket, what in limits if bucket) + " per minute"

    def reserved(self, tokens: int) -> int:
        """Return the tokens that a request reserves: at most a minute's worth, or 0 without a limit."""
        return min(tokens, self._tpm)

    def wait(self, tokens: int, now: float, ahead: QueuedDemand = NO_DEMAND) -> float:
        """Return the seconds until a request with these tokens may be sent, after those ahead of it."""
        waits = [0.0]
        if self.requests:
            waits.append(self.requests.wait(1, now, ahead.requests))
        if self.tokens:
            waits.append(self.tokens.wait(tokens, now, ahead.tokens))
        return max(waits)

    def acquire(self, tokens: int, now: float, *, requests: int = 1) -> None:
        for bucket, count in ((self.requests, requests), (self.tokens, tokens)):
            if bucket is not None:
                bucket.acquire(count, now)

    def release(self, tokens: int, now: float) -> None:
        """Return the tokens by which an estimate was too large, negative if it was too small.

        Too small by a minute's worth at most: no server looks further back, and one that reports far too many
        tokens must not keep its account from being used.
        """
        tokens = max(tokens, -self._tpm) if self.tokens else tokens
        self.acquire(-tokens, now, requests=0)
        self.released[TOKENS] = self.released.get(TOKENS, 0.0) + tokens

    def set_levels(self, levels: Amounts, now: float) -> None:
        """Set what is available, as all processes know it."""
        for unit, bucket in ((REQUESTS, self.requests), (TOKENS, self.tokens)):
            if bucket is not None and unit in levels:
                bucket.set_level(levels[unit], now)
