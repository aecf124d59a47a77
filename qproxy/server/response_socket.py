"""One WebSocket of `/v1/responses`: its lanes, and the responses that may be continued on it.

A lane is a queue with a task while it has messages: responses of a lane follow each other, those of several
run concurrently. All tasks belong to one nursery, which the client's disconnect cancels with everything that
is done for them. Messages are always read, since only reading notices that disconnect: beyond
`max_queued_bytes` that wait, further ones are refused.

The latest response of each lane stays in memory with its whole conversation, even one with `store: false`, so
that the client sends only what is new. It is forgotten when the lane has another one, when continuing it
fails, and when the connection holds more than `max_cached_bytes`: then the client sends all of it again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import trio

from qproxy.wire.endpoints.responses import socket_events
from qproxy.wire.endpoints.responses.socket_events import ClientMessage

JSON = Any


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseSocketLimits:
    """The limits of one connection."""

    timeout: float
    """Seconds after which it accepts no further message (`math.inf` for no limit)."""
    max_cached_bytes: int
    """Bytes of the conversations that it keeps in memory."""


@dataclass(frozen=True, slots=True)
class CachedResponse:
    """A response that the connection remembers."""

    id: str
    items: list[JSON]
    """The whole conversation that ends with it."""
    is_stored: bool
    """Whether the store has it too."""
    size: int
    """Bytes of the items, as the client and the model sent them."""


@dataclass(eq=False, slots=True)
class Lane:
    """The responses of one connection that follow each other."""

    stream_id: str | None
    queue: deque[ClientMessage] = field(default_factory=deque)
    latest: CachedResponse | None = None
    is_running: bool = False


class ResponseSocket:
    """The lanes of one connection."""

    def __init__(
        self,
        serve: Callable[[Lane, ClientMessage], Awaitable[None]],
        *,
        max_queued_bytes: int,
        max_cached_bytes: int,
    ) -> None:
        """`serve` answers a message."""
        self._serve = serve
        self._max_queued_bytes = max_queued_bytes
        self._max_cached_bytes = max_cached_bytes
        self._lanes: dict[str | None, Lane] = {}
        self._slots = trio.CapacityLimiter(socket_events.MAX_IN_FLIGHT)
        self._queued_bytes = 0

    def __repr__(self) -> str:
        running = sum(lane.is_running for lane in self._lanes.values())
        return f"<ResponseSocket with {len(self._lanes)} lanes, {running} running>"

    def lane(self, stream_id: str | None) -> Lane:
        """Return a lane, a new one for a new name.  Raises RequestError if there are too many."""
        lane = self._lanes.get(stream_id)
        if lane is None:
            if stream_id is not None and len(self._lanes.keys() - {None}) >= socket_events.MAX_LANES:
                raise socket_events.too_many_lanes()
            lane = self._lanes[stream_id] = Lane(stream_id)
        return lane

    def add(self, lane: Lane, message: ClientMessage, nursery: trio.Nursery) -> None:
        """Answer a message when those before it in its lane are answered.  Raises RequestError if the
        messages that wait are too large together."""
        if self._queued_bytes > self._max_queued_bytes:
            raise socket_events.queue_full(self._max_queued_bytes)
        lane.queue.append(message)
        self._queued_bytes += len(message.data)
        if not lane.is_running:
            lane.is_running = True
            nursery.start_soon(self._run, lane)

    def discard_queued(self) -> None:
        """Forget the messages that nothing was done for yet."""
        for lane in self._lanes.values():
            lane.queue.clear()

    async def _run(self, lane: Lane) -> None:
        while lane.queue:
            async with self._slots:
                if not lane.queue:  # discarded in the meantime
                    break
                message = lane.queue.popleft()
                self._queued_bytes -= len(message.data)
                await self._answer(lane, message)
                del message  # it may be large, and the next one may take long
        lane.is_running = False

    async def _answer(self, lane: Lane, message: ClientMessage) -> None:
        before = lane.latest
        await self._serve(lane, message)
        if lane.latest is before and before is not None and before.id == message.previous_id:
            lane.latest = None  # as at OpenAI, a response is forgotten if continuing it fails

    def find(self, id: str | None) -> CachedResponse | None:
        """Return a response that the connection remembers, whichever lane it belongs to."""
        return next((cached for cached in self._cached() if cached.id == id), None)

    def target_lane(self, id: str | None) -> str | None:
        """Return the name of the lane of a response, None if it is unknown or has no name."""
        lanes = self._lanes.values()
        return next((lane.stream_id for lane in lanes if lane.latest and lane.latest.id == id), None)

    def remember(self, lane: Lane, response: CachedResponse) -> None:
        """Make this the latest response of its lane."""
        lane.latest = response
        self._lanes[lane.stream_id] = self._lanes.pop(lane.stream_id)  # the lane used last comes last
        for other in self._lanes.values():
            if sum(cached.size for cached in self._cached()) <= self._max_cached_bytes:
                break
            other.latest = None

    def _cached(self) -> Iterator[CachedResponse]:
        return (lane.latest for lane in self._lanes.values() if lane.latest is not None)
