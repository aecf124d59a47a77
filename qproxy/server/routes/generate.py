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
from qproxy.relay.event_stream import MAX_EVENTS, EventStream, apart
from qproxy.server import request_context
from qproxy.server.http_response import HTTPResponse
from qproxy.server.in_flight import InFlightRequest
from qproxy.server.state import Route, ServerState
from qproxy.server.streaming import SSEBody, record_events
from qproxy.server.usage_limits import reserve_usage
from qproxy.wire import json_codec, raw_json
from qproxy.wire.endpoints import ENDPOINTS, Endpoint, StreamEncoder
from qproxy.wire.events import Turn
from qproxy.wire.json_codec import LARGE

STREAM_TYPE = "text/event-stream; charset=utf-8"
STREAM_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}


class NoHistory:
    """What one request knows of earlier ones and leaves to later ones: this one nothing.

    It is made in the request's context, and used after it too: a stream outlives it.
    """

    def __init__(self, state: ServerState) -> None:
        self.state = state

    async def load(self, body: Any) -> dict[str, Any]:
        """What the request needs of earlier ones: further arguments for the endpoint's `decode`."""
        return {}

    async def save(self, turn: Turn, answer: dict[str, Any]) -> None:
        """Remember a whole answer.  What goes wrong here is not the answer's fault: nothing is raised."""

    async def save_stream(self, turn: Turn, encoder: StreamEncoder) -> None:
        """Remember a streamed answer, before its last bytes go out.  As `keep`, nothing is raised."""


class GenerationRoutes:
    """The views and their routes."""

    def __init__(
        self, state: ServerState, memories: Mapping[str, Callable[[ServerState], NoHistory]] | None = None
    ) -> None:
        self._state = state
        self._histories = memories or {}
        """What makes the memory of a request, for the endpoints that have one, by path."""

    def routes(self) -> Iterator[Route]:
        for endpoint in ENDPOINTS:
            yield Route(endpoint.path, ("POST",), self._view(endpoint), fast_path=True)

    def _view(self, endpoint: Endpoint) -> Callable[[], Awaitable[HTTPResponse]]:
        async def view() -> HTTPResponse:
            state, record, stack = self._state, request_context.record(), request_context.stack()
            memory = self._histories.get(endpoint.path, NoHistory)(state)
            in_flight = state.in_flight.add(stack, state.policy.request_timeout)
            with in_flight.deadline_scope():
                turn = await self._turn(endpoint, memory)
                record.stream = turn.stream
                equipped, tools = state.tool_runtime.prepare(
                    turn,
                    request_context.api_key(),
                    stands_for=state.policy.aliases.resolve(turn.model),
                    remembers=not endpoint.exposes_server_tools,
                )
                await reserve_usage(state, turn.model, _estimate(equipped))
                stack.callback(await state.concurrency.acquire())
                answer = await state.tool_runtime.start(
                    state.relay, equipped, tools, record.relay, stack, request_context.nursery
                )
                record.first_byte = record.seconds
                if not turn.stream:
                    return await self._whole(endpoint, memory, turn, answer)
            return self._stream(endpoint, memory, turn.without_prompt(), answer, in_flight)

        return view

    async def _turn(self, endpoint: Endpoint, memory: NoHistory) -> Turn:
        body, policy = await json_body(self._state), self._state.policy
        decode = partial(
            endpoint.decode,
            body,
            id=endpoint.id_prefix + secrets.token_hex(12),
            created=int(time.time()),
            default_model=policy.default_model,
            max_messages=policy.max_messages,
            **await memory.load(body),
        )
        is_large = isinstance(body, raw_json.RawBody) and body.raw_fields.size > LARGE
        return await apart(decode) if is_large else decode()

    async def _whole(
        self, endpoint: Endpoint, memory: NoHistory, turn: Turn, answer: EventStream
    ) -> HTTPResponse:
        record, bodies = request_context.record(), self._state.body_logger
        events = await answer.read_all()
        record_events(record, events)
        record.response_started = record.seconds
        many = len(events) > MAX_EVENTS
        whole = await apart(endpoint.response, turn, events) if many else endpoint.response(turn, events)
        await memory.save(turn, whole)
        data = await apart(json_codec.dumps, whole) if many else json_codec.dumps(whole)
        if bodies:
            bodies.log_response(record, data)
        return HTTPResponse(data)

    def _stream(
        self,
        endpoint: Endpoint,
        memory: NoHistory,
        turn: Turn,
        answer: EventStream,
        in_flight: InFlightRequest,
    ) -> HTTPResponse:
        record, state, encoder = request_context.record(), self._state, endpoint.encoder(turn)
        ended = partial(memory.save_stream, turn, encoder)
        body = SSEBody(
            answer, encoder, record, in_flight, keep_alive=state.policy.keep_alive_interval, ended=ended
        )
        if state.body_logger:
            body.log_to(request_context.stack().enter_context(closing(state.body_logger.streaming(record))))
        return HTTPResponse(body, content_type=STREAM_TYPE, headers=dict(STREAM_HEADERS))


def _estimate(turn: Turn) -> Callable[[], tuple[int, int]]:
    """`estimate`, made now for a stream: it does not keep its prompt for as long as it lasts."""
    if not turn.stream:
        return partial(estimate, turn)
    estimated = estimate(turn)
    return lambda: estimated


async def json_body(state: ServerState) -> Any:
    """The request's body as JSON; a RequestError says what is wrong with it."""
    headers = request_context.headers()
    mimetype = (headers.get("content-type") or "").partition(";")[0].strip().lower()
    state.policy.check_content_type(mimetype, from_page="origin" in headers)
    data = await request_context.body()
    if state.body_logger:
        state.body_logger.log_request(request_context.record(), data)
    return await apart(state.policy.parse_json, data) if len(data) > LARGE else state.policy.parse_json(data)
