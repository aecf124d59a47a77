"""The flex tier: requests that may wait, at Model Studio's synchronous batch host, for half the price.

The host answers whole and once, possibly after an hour; what it does not answer in time is not billed. It
serves the accounts that have a `flex_url`, and the models whose data have `batch_chat`.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

import trio

from qproxy.accounts import Account
from qproxy.relay.event_stream import EventStream
from qproxy.transport import ReceiveTimeout
from qproxy.wire.errors import QproxyError, UpstreamError
from qproxy.wire.events import Event, StreamFailed, Turn
from qproxy.wire.models import ModelSpec

FLEX, DEFAULT = "flex", "default"
_CLIENT_FAULTS = (400, 413, 422)
"""Statuses of rejections that the usual tier would repeat."""


@dataclass(frozen=True, slots=True)
class FlexPolicy:
    """The operator's settings of the flex tier, in seconds."""

    timeout: float
    promotion_after: float
    """Until a request moves to the usual tier; 0 is never."""


def wants_flex(turn: Turn) -> bool:
    """Return whether a client requests the flex tier."""
    return turn.params.get("service_tier") == FLEX


def without_tier(turn: Turn) -> Turn:
    """Return the turn without its tier, which no upstream reads."""
    return replace(
        turn, params={name: value for name, value in turn.params.items() if name != "service_tier"}
    )


def can_serve_flex(account: Account, spec: ModelSpec, turn: Turn) -> bool:
    """Return whether the batch host has the model for the account, and takes a conversation."""
    known = spec.knows("batch_chat") and bool(spec.batch_chat)
    return bool(account.flex_url) and known and turn.completion is None


def is_client_fault(error: UpstreamError) -> bool:
    """Return whether the batch host rejected the request itself, rather than to serve it now."""
    return error.status in _CLIENT_FAULTS


def unavailable_error(cause: str) -> QproxyError:
    """Return the error of a request that the flex tier did not serve."""
    message = (
        f"The flex tier has not served the request ({cause}). Retry later, or use the default tier; "
        "flex_promotion_after moves such requests to it."
    )
    return QproxyError(
        message, status=429, type="rate_limit_error", code="resource_unavailable", retry_after=60
    )


class PendingStream(EventStream):
    """A response that has not started, for a client whose connection is kept alive meanwhile."""

    def __init__(self, start: Callable[[], Awaitable[EventStream]]) -> None:
        self._start = start
        self._stream: EventStream | None = None
        self._error: QproxyError | None = None
        self._ready = trio.Event()
        self._waiting: trio.CancelScope | None = None

    def __repr__(self) -> str:
        return f"<PendingStream {'waiting' if self._stream is None else self._stream}>"

    async def run(self) -> None:
        """Start the response; its error becomes the last event."""
        try:
            self._stream = await self._start()
        except QproxyError as error:
            self._error = error
        self._ready.set()

    def interrupt(self) -> None:
        """Make the waiting `receive`, if any, raise ReceiveTimeout."""
        if self._stream is not None:
            self._stream.interrupt()
        elif self._waiting is not None:
            self._waiting.cancel()

    async def receive(self, until: float = math.inf) -> list[Event]:
        """Return the next events, as `EventStream.receive`."""
        if not self._ready.is_set():
            with trio.CancelScope(deadline=until) as self._waiting:
                await self._ready.wait()
            if self._waiting.cancelled_caught:
                raise ReceiveTimeout
        if self._stream is not None:
            return await self._stream.receive(until)
        error, self._error = self._error, None
        return [] if error is None else [StreamFailed(error)]
