"""Routes that generate text: one for every `Endpoint`.

Each reads the body, applies the key's limits and the concurrency limit, and returns the response, whole or
streamed. The fields of bodies are known to `wire.endpoints`, accounts to `relay`.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import Any, TypeAlias

from qproxy.access.rate_limits import output_limit
from qproxy.relay.event_stream import MAX_EVENTS, EventStream, apart
from qproxy.relay.flex import PendingStream, wants_flex
from qproxy.relay.tool_loop import RequestTools
from qproxy.server import request_context
from qproxy.server.http_response import HTTPResponse
from qproxy.server.in_flight import InFlightRequest
from qproxy.server.request_body import read_json
from qproxy.server.request_files import resolve_files
from qproxy.server.routes.stored_items import client_owner
from qproxy.server.state import Route, ServerState, StateHolder
from qproxy.server.streaming import SSEBody, record_events
from qproxy.server.usage_limits import reserve_usage
from qproxy.wire import json_codec, raw_json
from qproxy.wire.endpoints import Endpoint, StreamEncoder
from qproxy.wire.endpoints.file_parts import UnresolvedFile
from qproxy.wire.events import Turn
from qproxy.wire.json_codec import LARGE
from qproxy.wire.token_estimate import prompt_size

STREAM_TYPE = "text/event-stream; charset=utf-8"
StartResponse: TypeAlias = Callable[[], Awaitable[EventStream]]
"""Opens the response within the context of its request."""
STREAM_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}


class NoHistory:
    """Loads and saves what a request shares with other requests; this one does neither.

    It is created in the request's context and is also used after it: a stream outlives it.
    """

    def __init__(self, state: ServerState) -> None:
        self.state = state

    async def load(self, body: Any) -> dict[str, Any]:
        """Return further arguments for the endpoint's `decode`."""
        return {}

    async def save(self, turn: Turn, answer: dict[str, Any]) -> None:
        """Save a whole response.  Failures are logged, not raised: the response itself is good."""

    def is_background(self, turn: Turn) -> bool:
        """Return whether a response is generated beyond its client's connection (`run`)."""
        return False

    async def run(
        self, turn: Turn, encoder: StreamEncoder, start: StartResponse, in_flight: InFlightRequest
    ) -> HTTPResponse:
        """Start a response in the background, and return the client's first response."""
        raise NotImplementedError

    def encoder(self, turn: Turn, encoder: StreamEncoder) -> StreamEncoder:
        """Return the encoder of a stream, with what this history needs around it."""
        return encoder

    def record_stream(self, turn: Turn, encoder: StreamEncoder) -> None:
        """Prepare to save the events of a stream, for a client whose connection breaks."""

    async def save_stream(self, turn: Turn, encoder: StreamEncoder) -> None:
        """Save a streamed response before its last bytes are sent.  Failures are logged, not raised."""


class GenerationRoutes:
    """Serve every endpoint."""

    def __init__(
        self,
        server: StateHolder,
        endpoints: Sequence[Endpoint],
        histories: Mapping[str, Callable[[ServerState], NoHistory]],
    ) -> None:
        """`histories` make the history of a request, by the endpoint's path."""
        self._server = server
        self._endpoints = endpoints
        self._histories = histories

    def routes(self) -> Iterator[Route]:
        for endpoint in self._endpoints:
            yield Route(
                endpoint.path,
                ("POST",),
                self._view(endpoint),
                api=endpoint.api,
                operation=endpoint.operation,
                schema=endpoint.schema,
                streams=True,
                fast_path=True,
            )

    def _view(self, endpoint: Endpoint) -> Callable[[], Awaitable[HTTPResponse]]:
        async def view() -> HTTPResponse:
            state, record, stack = self._server.state, request_context.record(), request_context.stack()
            history = self._histories.get(endpoint.path, NoHistory)(state)
            in_flight = state.in_flight.add(
                stack, state.request_limits.client_request_timeout, "client_request_timeout"
            )
            with in_flight.deadline_scope():
                turn = await decode_turn(endpoint, state, history)
                record.stream = turn.stream
                key = request_context.api_key()
                record.relay.client = "" if key is None else key.digest
                equipped, tools = await state.tool_runtime.prepare(
                    turn,
                    key,
                    served_model=state.relay.policy.aliases.resolve(turn.model),
                    remembers=not endpoint.exposes_server_tools,
                    can_search=state.relay.can_search,
                    nursery=None if history.is_background(turn) else request_context.nursery(),
                )
                estimate = await reserve_usage(state, turn.model, prompt_size(equipped), output_limit(turn))
                equipped, turn = (replace(each, token_estimate=estimate) for each in (equipped, turn))
                stack.callback(await state.concurrency.acquire())
                if history.is_background(turn):
                    start = partial(_start_response, state, equipped, tools)
                    turn = turn.without_prompt()
                    return await history.run(turn, endpoint.encoder(turn), start, in_flight)
                if turn.stream and wants_flex(turn):  # its first event may take an hour
                    answer: EventStream = _pending(partial(_start_response, state, equipped, tools))
                else:
                    answer = await _start_response(state, equipped, tools)
                record.first_byte = record.seconds
                if not turn.stream:
                    return await _whole_response(endpoint, state, history, turn, answer)
            return _stream_response(endpoint, state, history, turn.without_prompt(), answer, in_flight)

        return view


async def decode_turn(endpoint: Endpoint, state: ServerState, history: NoHistory) -> Turn:
    """Return the turn of the current request's body.  Raises RequestError when it is unusable."""
    body = await read_json(state.request_limits, state.body_logger)
    selection = {"qwen_params": state.relay.policy.catalog.qwen_params} if endpoint.selects_params else {}
    decode = partial(
        endpoint.decode,
        created=int(time.time()),
        request_id=request_context.record().id,
        default_model=state.default_model,
        max_messages=state.request_limits.max_messages,
        **selection,
        **{"id": endpoint.id_prefix + secrets.token_hex(12), **await history.load(body)},
    )
    is_large = isinstance(body, raw_json.RawBody) and body.raw_fields.size > LARGE
    try:
        turn = await apart(decode, body) if is_large else decode(body)
    except UnresolvedFile:
        body = await resolve_files(body, state.files, client_owner(), state.request_limits)
        turn = await apart(decode, body)
    apply_headers = endpoint.api.apply_headers
    return turn if apply_headers is None else apply_headers(turn, request_context.headers().get)


async def _start_response(state: ServerState, turn: Turn, tools: RequestTools) -> EventStream:
    """Return the started response, with a conversation that is too long shortened as the client permits."""
    record, stack, nursery = request_context.record().relay, request_context.stack(), request_context.nursery

    async def respond(turn: Turn) -> EventStream:
        return await state.tool_runtime.start(state.relay, turn, tools, record, stack, nursery)

    if turn.context is None:
        return await respond(turn)
    return await state.compactor.start(respond, state.relay, turn, record, stack, nursery)


def _pending(start: StartResponse) -> PendingStream:
    """Return a response that starts while its client's connection is kept alive."""
    stream = PendingStream(start)
    request_context.nursery().start_soon(stream.run)
    return stream


async def _whole_response(
    endpoint: Endpoint, state: ServerState, history: NoHistory, turn: Turn, answer: EventStream
) -> HTTPResponse:
    record = request_context.record()
    events = await answer.read_all()
    record_events(record, events)
    record.response_started = record.seconds
    many = len(events) > MAX_EVENTS
    whole = await apart(endpoint.response, turn, events) if many else endpoint.response(turn, events)
    await history.save(turn, whole)
    data = await apart(json_codec.dumps, whole) if many else json_codec.dumps(whole)
    if state.body_logger:
        state.body_logger.log_response(record, data)
    return HTTPResponse(data)


def _stream_response(
    endpoint: Endpoint,
    state: ServerState,
    history: NoHistory,
    turn: Turn,
    answer: EventStream,
    in_flight: InFlightRequest,
) -> HTTPResponse:
    record, encoder = request_context.record(), history.encoder(turn, endpoint.encoder(turn))
    history.record_stream(turn, encoder)
    body = SSEBody(
        answer,
        encoder,
        record,
        in_flight,
        keep_alive=endpoint.api.keep_alive,
        keep_alive_interval=state.request_limits.keep_alive_interval,
        on_finished=partial(history.save_stream, turn, encoder),
    )
    if state.body_logger:
        body.log_to(request_context.stack().enter_context(closing(state.body_logger.streaming(record))))
    return HTTPResponse(body, content_type=STREAM_TYPE, headers=dict(STREAM_HEADERS))
