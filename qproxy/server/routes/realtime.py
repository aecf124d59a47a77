"""The route of realtime sessions, which are WebSocket connections to a model.

Here: authorization, limits of the key, and the client's handshake and close. Not here: the events
(`wire.realtime`) and the relay between client and upstream (`qproxy.relay.realtime`).

A session is checked before it is accepted, so a rejection is an HTTP response with its status. A session
counts as one request when it starts and as another for every further minute; its tokens count as the upstream
reports them.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import trio
from quart import websocket

from qproxy.relay.realtime import RealtimeSession, SessionEnd, connect_upstream, end_for_error
from qproxy.server import request_context
from qproxy.server.http_response import HTTPResponse
from qproxy.server.request_body import websocket_required
from qproxy.server.state import Route, StateHolder
from qproxy.server.usage_limits import extend_usage, reserve_usage
from qproxy.wire import json_codec
from qproxy.wire.endpoints import OPENAI
from qproxy.wire.errors import QproxyError, RequestError
from qproxy.wire.events import JSON
from qproxy.wire.realtime import SessionTranslator
from qproxy.wire.token_ratios import PromptSize

PROTOCOL = "realtime"
"""OpenAI's subprotocol, selected if the client offers it."""
BETA_PROTOCOL, BETA_HEADER = "openai-beta.realtime-v1", "realtime=v1"
SWITCHING_PROTOCOLS = 101
MAX_REASON = 120
"""Bytes of a close frame's reason (RFC 6455 5.5)."""


class _Client:
    """The client's WebSocket, through Quart; the settings of its client secret are its first event."""

    def __init__(self, session: dict[str, JSON] | None) -> None:
        update = {"type": "session.update", "session": session}
        self._first = json_codec.dumps(update).decode() if session else None

    async def receive(self) -> str | bytes:
        if self._first is not None:
            first, self._first = self._first, None
            return first
        request_context.allow_receive()
        message: str | bytes = await websocket.receive()
        return message

    async def send(self, text: str) -> None:
        await websocket.send(text)


class RealtimeRoutes:
    """The view of realtime sessions and its route."""

    def __init__(self, server: StateHolder) -> None:
        self._server = server

    def routes(self) -> Iterator[Route]:
        yield Route("/realtime", (), self._view, websocket=True, api=OPENAI)
        yield Route("/realtime", ("GET",), self._reject_http, api=OPENAI)

    async def _reject_http(self) -> HTTPResponse:
        """Raise RequestError for a request without a WebSocket handshake."""
        raise websocket_required()

    async def _view(self) -> None:
        state, record, stack = self._server.state, request_context.record(), request_context.stack()
        bounds = state.realtime.bounds
        in_flight = state.in_flight.add(stack, bounds.timeout, "realtime_timeout")
        with in_flight.deadline_scope():
            secret = state.authentication.client_secret(request_context.headers(), request_context.scope())
            given = {} if secret is None else secret.session
            model = _model(given.get("model")) or state.default_model
            if not model:
                raise RequestError("you must provide a model parameter", param="model")
            await reserve_usage(state, model, PromptSize(0))
            stack.callback(await state.concurrency.acquire())
            server, first = await connect_upstream(
                state.relay, model, bounds, record.relay, stack, request_context.nursery()
            )
        translation = SessionTranslator(
            model,
            modern=not _wants_beta(),
            transcriber=state.realtime.transcriber,
            voices=state.realtime.voices,
            strict=state.relay.policy.strict_params,
            event_prefix=f"event_{secrets.token_hex(8)}_",
        )

        async def pays(minutes: int) -> None:
            await extend_usage(translation.usage.tokens, minutes)

        session = RealtimeSession(_Client(given), server, translation, bounds, pays=pays)
        offered = websocket.requested_subprotocols
        await websocket.accept(subprotocol=PROTOCOL if PROTOCOL in offered else None)
        record.status, record.stream, record.first_byte, record.outcome = (
            SWITCHING_PROTOCOLS,
            True,
            record.seconds,
            "ok",
        )
        stack.callback(_record_session, translation, record.overhead_seconds)
        try:
            with in_flight.deadline_scope():
                ending = await session.run(first)
        except QproxyError as error:
            ending = end_for_error(error)
        await _close_code(session, ending)


def _model(given: str | None) -> str | None:
    """Return the model of a session; a client secret for a model is for no other."""
    named = websocket.args.get("model")
    if given and named and named != given:
        message = f"The client secret is for the model {given[:200]!r}."
        raise RequestError(message, status=403, type="permission_error", param="model")
    return named or given


def _wants_beta() -> bool:
    fields = request_context.headers()
    features = [name.strip().lower() for name in str(fields.get("openai-beta", "")).split(",")]
    return BETA_HEADER in features or BETA_PROTOCOL in websocket.requested_subprotocols


def _record_session(translation: SessionTranslator, overhead: float) -> None:
    """Record a session for the log; all time after its start was spent waiting for client or upstream."""
    record, seen = request_context.record(), translation.usage
    record.relay.upstream_seconds = record.seconds - overhead
    record.relay.usage = seen.usage
    record.relay.ignored = tuple(seen.ignored)
    record.chunks, record.response_started = seen.responses, record.seconds


async def _close_code(session: RealtimeSession, ending: SessionEnd) -> None:
    """Close the client's WebSocket with the reason for the end."""
    record, reason = request_context.record(), ""
    record.outcome = ending.outcome
    if ending.error is not None:
        record.note_error(ending.error)
        reason = ending.error.message.encode()[:MAX_REASON].decode(errors="ignore")
        await session.fail(ending.error)
    await websocket.close(ending.code, reason)
    await trio.lowlevel.checkpoint()
