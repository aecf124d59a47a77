"""Routes that ask a model: one for every row of `ENDPOINTS`.

Here: reading the body, the key's limits, a place in line, and the answer as a response, whole or streamed.
Not here: any field of a body (`wire.endpoints`), any account (`relay`).
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import closing
from functools import partial
from typing import Any

from qproxy.access.rate_limits import estimate
from qproxy.relay.event_stream import MAX_EVENTS, Pulled, apart
from qproxy.server import request_context as current
from qproxy.server.http_response import Reply
from qproxy.server.in_flight import Life
from qproxy.server.state import Parts, Route
from qproxy.server.streaming import Stream, note
from qproxy.server.usage_limits import charge
from qproxy.wire import json_codec as jsontext
from qproxy.wire import raw_json as verbatim
from qproxy.wire.endpoints import ENDPOINTS, Endpoint, StreamEncoder
from qproxy.wire.events import Turn
from qproxy.wire.json_codec import LARGE

STREAM_TYPE = "text/event-stream; charset=utf-8"
STREAM_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}


class Memory:
    """What one request knows of earlier ones and leaves to later ones: this one nothing.

    It is made in the request's context, and used after it too: a stream outlives it.
    """

    def __init__(self, parts: Parts) -> None:
        self.parts = parts

    async def recall(self, body: Any) -> dict[str, Any]:
        """What the request needs of earlier ones: further arguments for the endpoint's `decode`."""
        return {}

    async def keep(self, turn: Turn, answer: dict[str, Any]) -> None:
        """Remember a whole answer.  What goes wrong here is not the answer's fault: nothing is raised."""

    async def ended(self, turn: Turn, encoder: StreamEncoder) -> None:
        """Remember a streamed answer, before its last bytes go out.  As `keep`, nothing is raised."""


class Asking:
    """The views and their routes."""

    def __init__(self, parts: Parts, memories: Mapping[str, Callable[[Parts], Memory]] | None = None) -> None:
        self._parts = parts
        self._memories = memories or {}
        """What makes the memory of a request, for the endpoints that have one, by path."""

    def routes(self) -> Iterator[Route]:
        for endpoint in ENDPOINTS:
            yield Route(endpoint.path, ("POST",), self._view(endpoint), direct=True)

    def _view(self, endpoint: Endpoint) -> Callable[[], Awaitable[Reply]]:
        async def view() -> Reply:
            parts, record, stack = self._parts, current.record(), current.stack()
            memory = self._memories.get(endpoint.path, Memory)(parts)
            life = parts.lives.one(stack, parts.door.request_timeout)
            with life.limited():
                turn = await self._turn(endpoint, memory)
                record.stream = turn.stream
                equipped, tools = parts.workshop.equip(
                    turn,
                    current.client(),
                    stands_for=parts.door.aliases.resolve(turn.model),
                    remembers=not endpoint.shows_tools,
                )
                await charge(parts, turn.model, _guess(equipped))
                stack.callback(await parts.admission.enter())
                answer = await parts.workshop.answer(
                    parts.relay, equipped, tools, record.story, stack, current.nursery
                )
                record.first_byte = record.seconds
                if not turn.stream:
                    return await self._whole(endpoint, memory, turn, answer)
            return self._streamed(endpoint, memory, turn.without_prompt(), answer, life)

        return view

    async def _turn(self, endpoint: Endpoint, memory: Memory) -> Turn:
        body, door = await json_body(self._parts), self._parts.door
        decode = partial(
            endpoint.decode,
            body,
            id=endpoint.id_prefix + secrets.token_hex(12),
            created=int(time.time()),
            default_model=door.default_model,
            max_messages=door.max_messages,
            **await memory.recall(body),
        )
        is_large = isinstance(body, verbatim.Body) and body.texts.size > LARGE
        return await apart(decode) if is_large else decode()

    async def _whole(self, endpoint: Endpoint, memory: Memory, turn: Turn, answer: Pulled) -> Reply:
        record, bodies = current.record(), self._parts.bodies
        events = await answer.all()
        note(record, events)
        record.answered = record.seconds
        many = len(events) > MAX_EVENTS
        whole = await apart(endpoint.whole, turn, events) if many else endpoint.whole(turn, events)
        await memory.keep(turn, whole)
        data = await apart(jsontext.dumps, whole) if many else jsontext.dumps(whole)
        if bodies:
            bodies.answered(record, data)
        return Reply(data)

    def _streamed(self, endpoint: Endpoint, memory: Memory, turn: Turn, answer: Pulled, life: Life) -> Reply:
        record, parts, encoder = current.record(), self._parts, endpoint.encoder(turn)
        ended = partial(memory.ended, turn, encoder)
        body = Stream(answer, encoder, record, life, keep_alive=parts.door.keep_alive, ended=ended)
        if parts.bodies:
            body.copies_to(current.stack().enter_context(closing(parts.bodies.streaming(record))))
        return Reply(body, content_type=STREAM_TYPE, fields=dict(STREAM_HEADERS))


def _guess(turn: Turn) -> Callable[[], tuple[int, int]]:
    """`estimate`, made now for a stream: it does not keep its prompt for as long as it lasts."""
    if not turn.stream:
        return partial(estimate, turn)
    estimated = estimate(turn)
    return lambda: estimated


async def json_body(parts: Parts) -> Any:
    """The request's body as JSON; a RequestError says what is wrong with it."""
    headers = current.headers()
    mimetype = (headers.get("content-type") or "").partition(";")[0].strip().lower()
    parts.door.check_type(mimetype, from_page="origin" in headers)
    data = await current.body()
    if parts.bodies:
        parts.bodies.asked(current.record(), data)
    return await apart(parts.door.parse, data) if len(data) > LARGE else parts.door.parse(data)
