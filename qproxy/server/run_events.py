"""A stream of stored events: of a response in the background, or of one whose stream broke off.

The events are read from the store by their numbers, so a client may read them from any process, at any time,
as often as it likes. Leaving the stream ends nothing but the stream.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from qproxy.server.http_response import StreamingBody
from qproxy.server.in_flight import InFlightRequest
from qproxy.server.response_runs import RunEvents, RunNotFound, RunState
from qproxy.server.response_store import StoredResponse
from qproxy.wire.endpoints.responses import stored_events
from qproxy.wire.errors import QproxyError, RequestError

POLL_SECONDS = 0.25
"""Seconds between two reads of a run that another process generates."""


class RunEventsBody(StreamingBody):
    """The body of one stream of stored events."""

    def __init__(
        self,
        after: int,
        *,
        read: Callable[[int], Awaitable[RunEvents]],
        wait: Callable[[float], Awaitable[None]],
        load: Callable[[], Awaitable[StoredResponse]],
        in_flight: InFlightRequest,
        keep_alive: bytes,
        keep_alive_interval: float,
    ) -> None:
        """`read` returns the events after a number, `wait` waits for more of them, `load` returns the
        response, settled if its process has stopped."""
        self._after = after
        self._read = read
        self._wait = wait
        self._load = load
        self._in_flight = in_flight
        self._keep_alive = keep_alive
        self._keep_alive_interval = keep_alive_interval
        self._is_complete = False
        """Whether the last event has been sent."""

    async def __anext__(self) -> bytes:
        if self.finished:
            raise StopAsyncIteration
        try:
            return await self._next()
        except RunNotFound:
            error: QproxyError = RequestError("The response was deleted.", status=404)
        except QproxyError as failure:
            error = failure
        self.finished = True
        return b"".join(stored_events.error_events(error, self._after + 1))

    async def _next(self) -> bytes:
        keep_alive_at = trio.current_time() + self._keep_alive_interval
        while True:
            read = await self._read(self._after)
            if read.events:
                self._after = read.first + len(read.events) - 1
                self._is_complete = stored_events.is_last_event(read.events[-1])
            if read.is_last and read.state is not RunState.ACTIVE:
                self.finished = True
                return b"".join([*read.events, *await self._missing_end(read)])
            if read.events:
                return b"".join(read.events)
            error = self._in_flight.error()
            if error is not None:
                raise error
            if trio.current_time() >= keep_alive_at:
                return self._keep_alive
            await self._wait(POLL_SECONDS)

    async def _missing_end(self, read: RunEvents) -> list[bytes]:
        """Return the last events of a response whose process could not store them."""
        if not self._is_complete and not read.events and read.next > 0:  # the client had read them all
            last = (await self._read(read.next - 2)).events
            self._is_complete = bool(last) and stored_events.is_last_event(last[-1])
        if self._is_complete:
            return []
        return stored_events.last_events((await self._load()).response, read.next)
