"""The route of `/v1/responses` as a WebSocket: the handshake, the reading, and each response as a request.

Every `response.create` is served as a `POST /v1/responses` is: with its own check of the key, its own limits,
log line, metrics, row of the ledger, exit stack and nursery. Only what the client gets differs: the events
are messages, and an error is a message with the status and headers that its response would have had.

The connection itself ends after its lifetime or at a shutdown: it reads nothing more, finishes the responses
in progress, and tells the client to open another one. The client's disconnect cancels everything at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import trio
from quart import websocket

from qproxy.relay.event_stream import apart
from qproxy.relay.realtime import NORMAL, RESTART
from qproxy.server import request_context
from qproxy.server.fast_path import HTTP_STREAM, respond
from qproxy.server.http_response import HTTPResponse
from qproxy.server.in_flight import shutting_down_error
from qproxy.server.middleware import RequestMiddleware
from qproxy.server.request_body import JSON_TYPE, body_too_large, websocket_required
from qproxy.server.response_socket import CachedResponse, Lane, ResponseSocket
from qproxy.server.response_store import StoredResponse
from qproxy.server.routes.generate import GenerationRoutes, decode_turn
from qproxy.server.routes.responses import ResponseHistory, next_id
from qproxy.server.state import Route, ServerState, StateHolder
from qproxy.server.usage_limits import reserve_request
from qproxy.wire import json_codec
from qproxy.wire.endpoints import ENDPOINTS, OPENAI, responses
from qproxy.wire.endpoints.responses import socket_events
from qproxy.wire.endpoints.responses.socket_events import ClientMessage
from qproxy.wire.errors import QproxyError, RequestError
from qproxy.wire.events import Turn

SWITCHING_PROTOCOLS = 101
OPEN_METHOD = "WS"
"""The method of a response's log line."""
_HANDSHAKE = (
    b"upgrade", b"connection", b"sec-websocket-key", b"sec-websocket-version", b"sec-websocket-extensions",
    b"content-type", b"content-length", b"content-encoding",
)  # fmt: skip
"""Headers of the handshake that a request for a response does not have."""


class ResponseSocketRoutes:
    """The view of the WebSocket, and its route."""

    def __init__(self, server: StateHolder, middleware: Callable[[], RequestMiddleware]) -> None:
        self._server = server
        self._middleware = middleware

    def routes(self) -> Iterator[Route]:
        yield Route("/responses", (), self._view, websocket=True, api=OPENAI)
        yield Route("/responses", ("GET",), self._reject_http, api=OPENAI)

    async def _reject_http(self) -> HTTPResponse:
        """Raise RequestError for a request without a WebSocket handshake."""
        raise websocket_required()

    async def _view(self) -> None:
        state, record = self._server.state, request_context.record()
        http_stream: Any = request_context.scope()["extensions"].get(HTTP_STREAM)
        if http_stream is not None:
            http_stream.max_message_bytes = state.request_limits.max_body_bytes
        await websocket.accept()
        record.status, record.outcome, record.uses_model = SWITCHING_PROTOCOLS, "ok", False
        error = await _Connection(self._server, self._middleware()).run()
        record.note_error(error)
        await _send_error(None, error)
        await websocket.close(RESTART if error.status == 503 else NORMAL, error.code or "")
        await trio.lowlevel.checkpoint()


class _Connection:
    """One connection: reads its messages and serves each."""

    def __init__(self, server: StateHolder, middleware: RequestMiddleware) -> None:
        self._server = server
        self._middleware = middleware
        limits = server.state.request_limits
        self._socket = ResponseSocket(
            self._serve,
            max_queued_bytes=limits.max_body_bytes,
            max_cached_bytes=server.state.response_sockets.max_cached_bytes,
        )
        self._scope = _request_scope(request_context.scope())
        self._routes: dict[str | None, _LaneRoutes] = {}

    async def run(self) -> QproxyError:
        """Serve messages until the connection must end, and return why."""
        state = self._server.state
        seconds = state.response_sockets.timeout
        async with trio.open_nursery() as lanes:
            async with trio.open_nursery() as reading:
                reading.cancel_scope.deadline = trio.current_time() + seconds
                reading.start_soon(self._read, lanes)
                await state.in_flight.drain_started.wait()
                reading.cancel_scope.cancel()
            self._socket.discard_queued()
        if state.in_flight.draining:
            return shutting_down_error()
        return socket_events.connection_expired(seconds)

    async def _read(self, lanes: trio.Nursery) -> None:
        while True:
            request_context.allow_receive()
            text: str | bytes = await websocket.receive()
            data = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
            try:
                await self._accept(data, lanes)
            except RequestError as error:
                await _send_error(None, error)

    async def _accept(self, data: bytes, lanes: trio.Nursery) -> None:
        """Queue a message for its lane.  Raises RequestError for one that is unusable."""
        limits = self._server.state.request_limits
        if len(data) > limits.max_body_bytes:
            raise body_too_large(limits, "message")
        parse, large = socket_events.parse_message, len(data) > json_codec.LARGE
        message = await apart(parse, data) if large else parse(data)
        if message.type == socket_events.STEER:
            await _send(self._socket.target_lane(message.previous_id), socket_events.steer_failed(message))
            return
        try:
            if message.type != socket_events.CREATE:
                raise socket_events.unknown_type(message.type)
            self._socket.add(self._socket.lane(message.stream_id), message, lanes)
        except RequestError as error:
            await _send_error(message.stream_id, error)

    async def _serve(self, lane: Lane, message: ClientMessage) -> None:
        """Serve a message as a request of its own, and send its events."""
        if lane.stream_id not in self._routes:
            self._routes[lane.stream_id] = _LaneRoutes.build(self._server, self._socket, lane)
        routes = self._routes[lane.stream_id]
        async with AsyncExitStack() as stack, trio.open_nursery() as nursery:
            request_context.bind(self._scope, stack, nursery, message.read)
            reply = await respond(self._middleware, routes.create if message.generate else routes.prepare)
            self._middleware.on_response(reply.status, reply.headers)
            if not isinstance(reply.body, bytes):
                async for lines in reply.body:
                    await _send(lane.stream_id, lines)
            elif reply.status == 200:
                await _send(lane.stream_id, reply.body)
            else:
                headers = {
                    name: value for name, value in reply.headers.items() if name in OPENAI.exposed_headers
                }
                error = json_codec.loads(reply.body)["error"]
                await _send(lane.stream_id, socket_events.error_message(reply.status, error, headers))
            nursery.cancel_scope.cancel()


@dataclass(frozen=True, slots=True)
class _LaneRoutes:
    """The routes that serve the messages of one lane."""

    create: Route
    prepare: Route

    @classmethod
    def build(cls, server: StateHolder, socket: ResponseSocket, lane: Lane) -> _LaneRoutes:
        history = partial(SocketHistory, socket=socket, lane=lane)
        (create,) = GenerationRoutes(server, (ENDPOINT,), {ENDPOINT.path: history}).routes()

        async def prepare() -> HTTPResponse:
            state = server.state
            own = history(state)
            turn = await decode_turn(ENDPOINT, state, own)
            await reserve_request(state, turn.model)
            response, lines = socket_events.prepared_response(turn)
            own.remember(turn, response, is_stored=False)
            return HTTPResponse(lines)

        path = f"/v1{ENDPOINT.path}"
        return cls(replace(create, path=path), Route(path, (OPEN_METHOD,), prepare, api=OPENAI))


class SocketHistory(ResponseHistory):
    """The state of one `response.create`: what the connection remembers, and what is stored."""

    def __init__(self, state: ServerState, *, socket: ResponseSocket, lane: Lane) -> None:
        super().__init__(state)
        self._socket = socket
        self._lane = lane
        self._parent: CachedResponse | None = None

    async def load(self, body: Any) -> dict[str, Any]:
        previous, ids = responses.referenced_ids(body)
        self._parent = parent = self._socket.find(previous)
        if parent is None:
            loaded = await super().load(body)
            before = loaded["before"]
            if before:
                self._parent = CachedResponse(previous or "", before, True, len(json_codec.dumps(before)))
            return loaded
        wanted = frozenset(ids)
        own = {name: value for name, value in body.items() if name != "previous_response_id"}
        loaded = await super().load(own)
        known = {item["id"]: item for item in parent.items if item["id"] in wanted}
        known = {**loaded["known"], **known}
        return {**loaded, "before": parent.items, "known": known, **next_id(previous)}

    async def save(self, turn: Turn, answer: dict[str, Any]) -> None:
        await super().save(turn, answer)
        self.remember(turn, answer, is_stored=responses.request_of(turn).store)

    def _stored(self, turn: Turn, answer: dict[str, Any]) -> StoredResponse:
        """Return what is stored: all of it after a parent that is not, which would be a gap of the chain."""
        stored, parent = super()._stored(turn, answer), self._parent
        if parent is None or parent.is_stored:
            return stored
        return replace(stored, previous_id=None, items=[*parent.items, *stored.items])

    def remember(self, turn: Turn, answer: dict[str, Any], *, is_stored: bool) -> None:
        """Keep the response for the next request of its lane."""
        own = [*responses.request_of(turn).items, *answer["output"]]
        parent = self._parent
        before, size = ([], 0) if parent is None else (parent.items, parent.size)
        size += len(json_codec.dumps(own))
        self._socket.remember(self._lane, CachedResponse(turn.id, [*before, *own], is_stored, size))


ENDPOINT = replace(
    next(endpoint for endpoint in ENDPOINTS if endpoint.path == "/responses"),
    api=replace(OPENAI, keep_alive=b""),  # pings keep a WebSocket alive
    decode=socket_events.decode,
    encoder=socket_events.SocketEncoder,
)
"""`POST /v1/responses`, as its requests and responses are on a WebSocket."""


def _request_scope(scope: dict[str, Any]) -> dict[str, Any]:
    """Return the scope of the requests on a connection, from that of its handshake."""
    headers = [field for field in scope["headers"] if field[0].lower() not in _HANDSHAKE]
    return {
        **scope,
        "type": "http",
        "method": OPEN_METHOD,
        "headers": [*headers, (b"content-type", JSON_TYPE.encode())],
    }


async def _send(stream_id: str | None, lines: bytes) -> None:
    for text in socket_events.on_lane(lines, stream_id):
        await websocket.send(text)


async def _send_error(stream_id: str | None, error: QproxyError) -> None:
    body = OPENAI.error_body(error, request_context.record().id)
    await _send(stream_id, socket_events.error_message(error.status, body["error"], {}))
