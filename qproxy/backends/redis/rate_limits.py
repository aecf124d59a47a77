"""Limits per minute for all processes of all machines."""

from __future__ import annotations

from qproxy.backends.redis.subject import Subject
from qproxy.backends.redis.subjects import Subjects
from qproxy.limits.token_bucket import Amounts, RateLimitGrant


class RedisRateLimits:
    """The levels of limits per minute on a server."""

    def __init__(self, subjects: Subjects) -> None:
        self._subjects = subjects

    def __repr__(self) -> str:
        return f"<RedisRateLimits {self._subjects!r}>"

    async def reserve(self, subject: bytes, limits: Amounts, amounts: Amounts) -> RateLimitGrant:
        return await self._subjects.reserve(self._subject(subject, limits), amounts)

    def settle(self, subject: bytes, limits: Amounts, amounts: Amounts) -> None:
        found = self._subject(subject, limits)
        found.take(amounts)
        self._subjects.settle(found)

    async def aclose(self) -> None:
        await self._subjects.aclose()

    def _subject(self, subject: bytes, limits: Amounts) -> Subject:
        return self._subjects.get(subject[:16].hex(), limits)
