"""Routes that ask a model: one for every row of `ENDPOINTS`.

Here: reading the body, the key's limits, a place in line, and the answer as a response, whole or streamed.
Not here: any field of a body (`wire.endpoints`), any account (`relay`).
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing
from typing import Any, cast

import trio
from quart import Response, request

from qproxy.door import JSON_TYPE
from qproxy.meters import estimate
from qproxy.observe import Record
from qproxy.server import current
from qproxy.server.parts import Parts, Route
from qproxy.server.streaming import Stream, note
from qproxy.wire import jsontext
from qproxy.wire.endpoints import ENDPOINTS, Endpoint
from qproxy.wire.events import Turn

STREAM_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}


class Asking:
    """The views and their routes."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def routes(self) -> Iterator[Route]:
        for endpoint in ENDPOINTS:
            yield Route(endpoint.path, ("POST",), self._view(endpoint))

    def _view(self, endpoint: Endpoint) -> Callable[[], Awaitable[Response]]:
        async def view() -> Response:
            parts, record, stack = self._parts, current.record(), current.stack()
            life = stack.enter_context(parts.lives.one(parts.door.request_timeout))
            with life.limited():
                turn = endpoint.decode(
                    await self._json_body(),
                    id=endpoint.id_prefix + secrets.token_hex(12),
                    created=int(time.time()),
                    default_model=parts.door.default_model,
                    max_messages=parts.door.max_messages,
                )
                record.stream = turn.stream
                self._charge(turn)
                stack.callback(await parts.admission.enter())
                answer = await parts.relay.open(turn, record.story, stack)
                record.first_byte = record.seconds
                if not turn.stream:
                    events = await answer.all()
                    note(record, events)
                    record.answered = record.seconds
                    data = jsontext.dumps(endpoint.whole(turn, events))
                    if parts.bodies:
                        parts.bodies.answered(record, data)
                    return Response(data, 200, content_type=JSON_TYPE)
            body = Stream(answer, endpoint.encoder(turn), record, life, keep_alive=parts.door.keep_alive)
            if parts.bodies:
                body.copies_to(stack.enter_context(closing(parts.bodies.streaming(record))))
            response = Response(body, 200, dict(STREAM_HEADERS))
            response.content_type = "text/event-stream; charset=utf-8"
            return response

        return view

    async def _json_body(self) -> Any:
        """The request's body as JSON; a RequestError says what is wrong with it."""
        door = self._parts.door
        door.check_type(request.mimetype, from_page="origin" in request.headers)
        data = cast("bytes", await request.get_data(cache=False))
        if self._parts.bodies:
            self._parts.bodies.asked(current.record(), data)
        return door.parse(data)

    def _charge(self, turn: Turn) -> None:
        """Reserve what the turn will use of its key's limits, and settle when the request is over."""
        key, record, now = current.client(), current.record(), trio.current_time()
        record.story.model = turn.model
        self._parts.door.check_model(key, turn.model)
        current.stack().callback(_guess, record, turn)
        meter = self._parts.meters.of(key, now)
        if meter is None:
            return
        current.scope()["qproxy.meter"] = meter
        reservation = meter.reserve(sum(estimate(turn)), now)

        def settle() -> None:
            _guess(record, turn)
            used, counts = sum(record.tokens()), record.story.tries > 0
            reservation.settle(used, trio.current_time(), counts=counts)

        current.stack().callback(settle)


def _guess(record: Record, turn: Turn) -> None:
    """About how long the prompt was, where the upstream did not say."""
    if record.story.usage is None and record.first_byte is not None:
        record.prompt_estimate = estimate(turn)[0]
