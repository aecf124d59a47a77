"""Limits how many wrong secrets an address may show: one limiter a secret, whichever route the secret is shown to.

A wrong one costs the address a token of its bucket; an address without tokens is refused before anything is compared,
so the answer says nothing of the secret.  A secret that was accepted from an address passes without a token there: a
stranger behind the same proxy cannot lock its owner out, and from elsewhere it is guessed no faster.  Whether it was
accepted is remembered by this process, and by `grants` for the others and the next start.

Addresses are many and cheap for some, so all wrong ones together take from one more bucket.  That one only delays
them: nobody can use it up for somebody else.
"""

from __future__ import annotations

import hashlib
import logging
import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

import trio

from qproxy.access.client_address import subscriber
from qproxy.access.grants import Grants, GrantsError
from qproxy.access.rate_limits import RateLimitStore
from qproxy.limits.token_bucket import TokenBucket
from qproxy.wire.errors import RequestError, WrongKey

T = TypeVar("T")
MAX_ADDRESSES = 10_000
"""That one process counts; the one that was wrong longest ago is forgotten."""
MAX_ACCEPTED = 10_000
REMEMBERED_SECONDS = 30 * 86400.0
RENEWAL_SECONDS = 86400.0
"""How old a process lets its memory of an accepted secret become before it is accepted anew."""
ALL_PER_MINUTE = 60
MAX_DELAY = 2.0
MAX_DELAYED = 100
"""Requests that are delayed at once: more are answered, rather than held."""
log = logging.getLogger("qproxy.access")


class SecretLimiter:
    """Of one secret, such as the admin key, or of one kind of them, such as client keys."""

    def __init__(
        self,
        name: str,
        per_minute: int,
        grants: Grants,
        store: RateLimitStore | None = None,
        *,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """`per_minute` is what an address may show wrong, 0 is no limit; `shelf` shares it with other processes."""
        self.name = name
        self._per_minute = per_minute
        self._grants = grants
        self._shelf = store
        self._wall = wall_clock
        self._buckets: dict[str, TokenBucket] = {}
        self._all: TokenBucket | None = None
        self._delayed = 0
        self._accepted: dict[bytes, float] = {}
        """When each secret was accepted from an address, by the digest of both."""

    def __repr__(self) -> str:
        return f"<SecretLimiter {self.name}, {len(self._buckets)} addresses, {len(self._accepted)} accepted>"

    async def verify(self, secret: str, address: str, compare: Callable[[], T]) -> T:
        """What `compare` returns; it raises WrongKey for a wrong secret.  RequestError 429 for an address without tokens."""
        if not self._per_minute:
            return compare()
        place, now = subscriber(address), trio.current_time()
        digest = self._digest(place, secret)
        if self._accepted.get(digest, -RENEWAL_SECONDS) <= now - RENEWAL_SECONDS:
            await self._admit(place, digest, now)
        try:
            result = compare()
        except WrongKey:
            self._accepted.pop(digest, None)
            await self._reject(place, now)
            raise
        if digest not in self._accepted:
            await self._accept(digest, now)
        return result

    async def _admit(self, place: str, digest: bytes, now: float) -> None:
        self._accepted.pop(digest, None)
        bucket = self._bucket(place, now)
        with self._held(place, bucket, now):
            wait = bucket.wait(1, now)
        if wait and not await self._is_granted(digest):
            raise RequestError(
                f"Too many wrong keys came from your address (wrong_keys_per_minute): wait {math.ceil(wait)} s.",
                status=429,
                type="rate_limit_error",
                code="too_many_attempts",
                retry_after=wait,
            )

    async def _reject(self, place: str, now: float) -> None:
        bucket = self._bucket(place, now)
        with self._held(place, bucket, now):
            bucket.acquire(1, now)
        if bucket.wait(1, now):
            log.warning("too many wrong %ss from %s; is it a proxy? see trusted_proxies", self.name, place)
        if self._all is None:
            self._all = TokenBucket(ALL_PER_MINUTE, now)
        wait = self._all.wait(1, now)
        if not wait:
            self._all.acquire(1, now)
        elif self._delayed < MAX_DELAYED:
            self._delayed += 1
            try:
                await trio.sleep(min(wait, MAX_DELAY))
            finally:
                self._delayed -= 1

    async def _accept(self, digest: bytes, now: float) -> None:
        self._accepted[digest] = now
        if len(self._accepted) > MAX_ACCEPTED:
            del self._accepted[next(iter(self._accepted))]
        try:
            await self._grants.add(self.name, digest, self._wall() + REMEMBERED_SECONDS)
        except GrantsError as error:
            log.warning("only this process remembers an accepted %s: %s", self.name, error)

    async def _is_granted(self, digest: bytes) -> bool:
        try:
            return await self._grants.has(self.name, digest)
        except GrantsError:
            return False

    def _digest(self, place: str, secret: str) -> bytes:
        text = f"{self.name}\0{place}\0{secret}"
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()

    def _bucket(self, place: str, now: float) -> TokenBucket:
        """The address's bucket, as the last one that was used."""
        bucket = self._buckets.pop(place, None) or TokenBucket(self._per_minute, now)
        self._buckets[place] = bucket
        if len(self._buckets) > MAX_ADDRESSES:
            del self._buckets[next(iter(self._buckets))]
        return bucket

    def _held(self, place: str, bucket: TokenBucket, now: float) -> AbstractContextManager[None]:
        if self._shelf is None:
            return nullcontext()
        identity = hashlib.sha256(f"{self.name}\0{place}\0{self._per_minute}".encode()).digest()
        return self._shelf.transaction(identity, (bucket, None), now)
