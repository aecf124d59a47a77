"""Rate limits of API keys: requests and tokens per minute.

A request reserves one request and an estimate of its tokens before it is sent. When it ends, the estimate is
exchanged for what was used: a client that disconnected pays for what it received, and a request that reached
no model is free.

`RateLimitStore` holds the buckets for all processes that serve the same keys; `backends.local` has one in
memory and one in a file. A limiter keeps the levels of its last use for what the responses say of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import trio

from qproxy.access.api_keys import ApiKey
from qproxy.limits.token_bucket import (
    REQUESTS,
    TOKENS,
    Amounts,
    RateLimitGrant,
    TokenBucket,
    refill_seconds,
)
from qproxy.wire.embeddings import EmbeddingInput
from qproxy.wire.endpoints.api import RateLimitStatus
from qproxy.wire.errors import RequestError
from qproxy.wire.events import Turn
from qproxy.wire.multimodal_embeddings import MultimodalInput
from qproxy.wire.token_estimate import text_bytes
from qproxy.wire.token_ratios import PromptSize

NOTHING: Amounts = {}
MIN_WAIT = 0.1
"""Seconds to retry after a rejection whose reason has passed."""


class RateLimitStore(Protocol):
    """The levels of limits per minute, for all processes that share the store.

    A subject is whatever is limited; `limits` are its amounts per minute. A store that fails costs accuracy
    and no request: it then decides by what this process knows.
    """

    async def reserve(self, subject: bytes, limits: Amounts, amounts: Amounts) -> RateLimitGrant:
        """Take all the amounts, or nothing if one of them is not available; no amounts ask for the levels."""
        ...

    def settle(self, subject: bytes, limits: Amounts, amounts: Amounts) -> None:
        """Take the amounts in any case, or return those that are negative. Never waits."""
        ...

    async def aclose(self) -> None: ...


@dataclass(eq=False, slots=True)
class RateLimitReservation:
    """The tokens that a request has taken and may get back."""

    limiter: KeyRateLimiter
    tokens: float
    settled: bool = False

    def settle(self, used: float, *, counts: bool = True) -> None:
        """Exchange the estimate for `used` tokens, once; the request is returned unless it `counts`."""
        if not self.settled:
            self.settled = True
            self.limiter.settle({TOKENS: used - self.tokens, REQUESTS: 0 if counts else -1})


class KeyRateLimiter:
    """The limits per minute of one key."""

    def __init__(
        self, key: ApiKey, store: RateLimitStore, *, clock: Callable[[], float] = trio.current_time
    ) -> None:
        self.limits = key.rate_limits
        self._name = key.label
        self._store = store
        self._clock = clock
        self._subject = hashlib.sha256(f"{key.digest} {key.rpm} {key.tpm}".encode()).digest()
        now = clock()
        self._levels = {unit: TokenBucket(limit, now) for unit, limit in self.limits.items()}

    async def reserve(self, tokens: float) -> RateLimitReservation:
        """Take one request and the tokens. Raises a RequestError with status 429, and takes nothing, if that
        must wait."""
        amounts = {REQUESTS: 1, TOKENS: min(tokens, self.limits.get(TOKENS, tokens))}
        self._check(await self._store.reserve(self._subject, self.limits, amounts), amounts)
        return RateLimitReservation(self, amounts[TOKENS])

    async def extend(self, amounts: Amounts) -> None:
        """Take what a running request has used since. Raises a RequestError with status 429 if that was too
        much."""
        self.settle(amounts)
        self._check(await self._store.reserve(self._subject, self.limits, NOTHING), NOTHING)

    def settle(self, amounts: Amounts) -> None:
        """Take or return amounts in any case."""
        now = self._clock()
        for unit, bucket in self._levels.items():
            bucket.acquire(amounts.get(unit, 0), now)
        self._store.settle(self._subject, self.limits, amounts)

    def _check(self, grant: RateLimitGrant, amounts: Amounts) -> None:
        now = self._clock()
        for unit, available in grant.available.items():
            self._levels[unit].set_level(available, now)
        raise_if_limited(self._name, self.limits, grant, amounts)

    def status(self) -> list[RateLimitStatus]:
        """Return what is left of each limit, as of this process's last use of the key."""
        now = self._clock()
        return [
            RateLimitStatus(
                unit, bucket.capacity, max(0, int(bucket.available(now))), bucket.wait(bucket.capacity, now)
            )
            for unit, bucket in self._levels.items()
        ]


def raise_if_limited(name: str, limits: Amounts, grant: RateLimitGrant, amounts: Amounts) -> None:
    """Raise a RequestError with status 429 if a key's amounts were not granted."""
    if grant.granted:
        return
    waits = {
        unit: refill_seconds(limit, grant.available[unit], amounts.get(unit, 0))
        for unit, limit in limits.items()
    }
    # A store elsewhere may reject what has been refilled since: it is a rejection all the same.
    unit = next((unit for unit, wait in waits.items() if wait), next(iter(waits)))
    wait = waits[unit] or MIN_WAIT
    raise RequestError(
        f"API key {name!r} is limited to {limits[unit]} {unit} per minute. Retry in {wait:.1f} s.",
        status=429,
        type="rate_limit_error",
        code="rate_limit_exceeded",
        retry_after=wait,
    )


class KeyRateLimiters:
    """The limiters of all keys, created on demand. A key whose limits have changed gets a new one."""

    def __init__(self, store: RateLimitStore, *, clock: Callable[[], float] = trio.current_time) -> None:
        self._store = store
        self._clock = clock
        self._by_key: dict[ApiKey, KeyRateLimiter] = {}

    def for_key(self, key: ApiKey) -> KeyRateLimiter | None:
        """Return the key's limiter, or None for a key without limits per minute."""
        if not (key.rpm or key.tpm):
            return None
        limiter = self._by_key.get(key)
        if limiter is None:
            self._by_key = {known: other for known, other in self._by_key.items() if known.id != key.id}
            limiter = self._by_key[key] = KeyRateLimiter(key, self._store, clock=self._clock)
        return limiter


def output_limit(turn: Turn) -> int:
    """Return the maximum tokens that a turn requests for its response, 0 for none."""
    max_tokens = turn.params.get("max_completion_tokens") or turn.params.get("max_tokens") or 0
    return int(max_tokens) if isinstance(max_tokens, int | float) and max_tokens > 0 else 0


def size_of_texts(request: EmbeddingInput) -> PromptSize:
    """Return the size of the texts of an embedding request."""
    return PromptSize(sum(map(text_bytes, request.texts)))


def size_of_contents(request: MultimodalInput) -> PromptSize:
    """Return the size of the contents of a request for multimodal embeddings."""
    return PromptSize(sum(map(text_bytes, request.texts)), request.images)
