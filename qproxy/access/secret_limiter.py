"""Limits on wrong secrets per address: one limiter for each secret, whichever route it is sent to.

A wrong secret costs its address one request of its limit. An address at its limit is rejected before anything
is compared, so the response reveals nothing about the secret. A secret that was accepted from an address
always passes from there: a stranger behind the same proxy cannot lock its owner out, and guessing it from
elsewhere gets no faster. Accepted secrets are remembered by this process, and in `grants` for other processes
and the next start.

Addresses are many and cheap for some attackers, so all wrong secrets together share one more limit. It only
delays responses: no client can exhaust it for another one.
"""

from __future__ import annotations

import hashlib
import logging
import math
import time
from collections.abc import Callable
from typing import TypeVar

import trio

from qproxy.access.client_address import subscriber_prefix
from qproxy.access.grants import GrantStore, GrantStoreError
from qproxy.access.rate_limits import NOTHING, RateLimitStore
from qproxy.limits.token_bucket import REQUESTS, RateLimitGrant, TokenBucket, refill_seconds
from qproxy.wire.errors import InvalidKeyError, RequestError

T = TypeVar("T")
MAX_ACCEPTED = 10_000
"""Accepted secrets that one process remembers; the oldest is dropped."""
GRANT_SECONDS = 30 * 86400.0
RENEWAL_SECONDS = 86400.0
"""Age at which a process asks the store again whether a secret was accepted."""
SHARED_ATTEMPTS_PER_MINUTE = 60
MAX_DELAY = 2.0
MAX_DELAYED = 100
"""Requests that are delayed concurrently; further ones are answered at once."""
ONE = {REQUESTS: 1}
log = logging.getLogger("qproxy.access")


class SecretLimiter:
    """Limits wrong values of one secret, such as the admin key, or of one kind of secrets, such as client
    keys."""

    def __init__(
        self,
        name: str,
        per_minute: int,
        grants: GrantStore,
        store: RateLimitStore,
        *,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """`per_minute` limits the wrong secrets of an address; 0 is no limit."""
        self.name = name
        self._limits = {REQUESTS: per_minute}
        self._grants = grants
        self._store = store
        self._wall_clock = wall_clock
        self._shared_bucket: TokenBucket | None = None
        self._delayed = 0
        self._accepted: dict[bytes, float] = {}
        """When each secret was accepted from an address, by the digest of both."""

    def __repr__(self) -> str:
        return f"<SecretLimiter {self.name}, {len(self._accepted)} accepted>"

    async def verify(self, secret: str, address: str, compare: Callable[[], T]) -> T:
        """Return the result of `compare`, which raises InvalidKeyError for a wrong secret.

        Raises a RequestError with status 429 for an address at its limit.
        """
        if not self._limits[REQUESTS]:
            return compare()
        network, now = subscriber_prefix(address), trio.current_time()
        digest = self._digest(network, secret)
        charged = 0
        if self._accepted.get(digest, -RENEWAL_SECONDS) <= now - RENEWAL_SECONDS:
            charged = await self._admit(network, digest)
        cost = 0
        try:
            result = compare()
        except InvalidKeyError:
            self._accepted.pop(digest, None)
            cost = 1
            raise
        finally:  # an expired key costs nothing either
            if cost != charged:
                self._store.settle(self._subject(network), self._limits, {REQUESTS: cost - charged})
            if cost:
                await self._delay(network, now)
        if digest not in self._accepted:
            await self._record_success(digest, now)
        return result

    async def _admit(self, network: str, digest: bytes) -> int:
        """Charge the address in advance, so that concurrent guesses are no more guesses; return the
        charge."""
        self._accepted.pop(digest, None)
        grant = await self._store.reserve(self._subject(network), self._limits, ONE)
        if grant.granted:
            return 1
        if not await self._is_granted(digest):
            wait = self._seconds_until_next(grant)
            raise RequestError(
                f"Too many wrong keys from your address (wrong_keys_per_minute). Retry in {math.ceil(wait)} "
                "s.",
                status=429,
                type="rate_limit_error",
                code="too_many_attempts",
                retry_after=wait,
            )
        return 0

    async def _delay(self, network: str, now: float) -> None:
        """Delay the response to a wrong secret while there are many of them from all addresses together."""
        grant = await self._store.reserve(self._subject(network), self._limits, NOTHING)
        if self._seconds_until_next(grant):
            log.warning(
                "too many wrong %ss: address=%s (if it is a proxy, set trusted_proxies)", self.name, network
            )
        if self._shared_bucket is None:
            self._shared_bucket = TokenBucket(SHARED_ATTEMPTS_PER_MINUTE, now)
        wait = self._shared_bucket.wait(1, now)
        if not wait:
            self._shared_bucket.acquire(1, now)
        elif self._delayed < MAX_DELAYED:
            self._delayed += 1
            try:
                await trio.sleep(min(wait, MAX_DELAY))
            finally:
                self._delayed -= 1

    async def _record_success(self, digest: bytes, now: float) -> None:
        self._accepted[digest] = now
        if len(self._accepted) > MAX_ACCEPTED:
            del self._accepted[next(iter(self._accepted))]
        try:
            await self._grants.add(self.name, digest, self._wall_clock() + GRANT_SECONDS)
        except GrantStoreError as error:
            log.warning("accepted %s is not shared with other workers: %s", self.name, error)

    async def _is_granted(self, digest: bytes) -> bool:
        try:
            return await self._grants.has(self.name, digest)
        except GrantStoreError:
            return False

    def _seconds_until_next(self, grant: RateLimitGrant) -> float:
        return refill_seconds(self._limits[REQUESTS], grant.available[REQUESTS], 1)

    def _digest(self, network: str, secret: str) -> bytes:
        text = f"{self.name}\0{network}\0{secret}"
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()

    def _subject(self, network: str) -> bytes:
        return hashlib.sha256(f"{self.name}\0{network}\0{self._limits[REQUESTS]}".encode()).digest()
