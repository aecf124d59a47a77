"""The interface of the limits of API keys: rate limits and budgets together, so that a member may check both
at once.

A request reserves amounts (`limits.token_bucket.Amounts`) before it is sent to a model and settles them when
it ends. Only `reserve` and `extend` may wait. A limit that does not allow the request raises its error
(`rate_limits`, `budgets`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from qproxy.access.api_keys import ApiKey
from qproxy.limits.token_bucket import Amounts
from qproxy.wire.endpoints.api import RateLimitStatus


class UsageReservation(Protocol):
    """The amounts that one request has reserved."""

    async def extend(self, amounts: Amounts) -> None:
        """Take more for a running request. Raises a RequestError with status 429 if its key may not use
        more."""
        ...

    def settle(self, used: Amounts, *, attempted: bool, answered: bool) -> None:
        """Exchange the reservation for what was used, once.

        The request itself counts for rate limits if it was `attempted` at an upstream, and for budgets if it
        was `answered` by an account.
        """
        ...


class UsageLimiter(Protocol):
    """The limits of all keys."""

    async def reserve(self, key: ApiKey, amounts: Amounts) -> UsageReservation:
        """Reserve amounts. Raises a RequestError with status 429, and reserves nothing, if a limit is
        reached.

        Raises a QproxyError with status 503 if a budget cannot be read.
        """
        ...

    def rate_limits(self, key: ApiKey) -> Sequence[RateLimitStatus]:
        """Return how much of each of the key's rate limits is left; each API has its own headers for it."""
        ...
