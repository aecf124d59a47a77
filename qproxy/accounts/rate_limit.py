"""How fast one account may be asked: requests and tokens a minute, so that it does not get to hear "too many".

A token bucket each.  A request takes one request and an estimate of its tokens before it is sent, and the estimate is
exchanged for what was used when it is over.  Where several processes speak as one account, what they agreed on
(`board`) is put into these buckets, and they are each one's view of it.
"""

from __future__ import annotations

from typing import NamedTuple

from qproxy.limits.token_bucket import TokenBucket


class QueuedDemand(NamedTuple):
    """Who else waits for the same, before."""

    requests: int = 0
    tokens: int = 0


NO_DEMAND = QueuedDemand()


class AccountRateLimiter:
    """Of one account; without limits it never makes anyone wait."""

    def __init__(self, rpm: int | None = None, tpm: int | None = None) -> None:
        self.requests = TokenBucket(rpm, 0.0) if rpm else None
        self.tokens = TokenBucket(tpm, 0.0) if tpm else None
        self.released_tokens = 0.0
        """Tokens given back since the beginning, more than was taken later counting against them."""

    def __repr__(self) -> str:
        return f"<Pace {self.requests} {self.tokens}>"

    @property
    def is_limited(self) -> bool:
        return self.requests is not None or self.tokens is not None

    def describe(self) -> str:
        """The limits, for people."""
        limits = [(self.requests, "requests"), (self.tokens, "tokens")]
        return " and ".join(f"{bucket.capacity} {what}" for bucket, what in limits if bucket) + " a minute"

    def reserved(self, tokens: int) -> int:
        """So many of a request's tokens are taken: a minute's worth at most, or nothing where none are counted."""
        return min(tokens, self.tokens.capacity) if self.tokens else 0

    def wait(self, tokens: int, now: float, ahead: QueuedDemand = NO_DEMAND) -> float:
        """Seconds until one request with so many tokens may go, after those ahead of it."""
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
        """An estimate was too large by so much, or too small by as much below nothing.

        Too small by a minute's worth at most: no server looks further back, and one that reports far too many tokens
        must not keep its account from being asked.
        """
        tokens = max(tokens, -self.tokens.capacity) if self.tokens else tokens
        self.acquire(-tokens, now, requests=0)
        self.released_tokens += tokens

    def set_level(self, requests: float | None, tokens: float | None, now: float) -> None:
        """Have so much left, as agreed with others."""
        for bucket, left in ((self.requests, requests), (self.tokens, tokens)):
            if bucket is not None and left is not None:
                bucket.set_level(left, now)
