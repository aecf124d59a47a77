"""The route of realtime sessions: a WebSocket that asks a model.

Here: who may have one, what it costs its key, and how it begins and ends for the client.  Not here: what is said in it
(`wire.realtime`), how both ends are joined (`qproxy.realtime`).

Whether a session may begin is known before it is accepted, so a refusal is a response with its status.  A session
counts as one request when it begins and as another for every further minute, and its tokens count as they are told.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import trio
from quart import websocket

from qproxy.relay.realtime import Ending, Session, connect, stopped
from qproxy.server import request_context as current
from qproxy.server.http_response import Reply
from qproxy.server.state import Parts, Route
from qproxy.server.usage_limits import charge, charge_more
from qproxy.wire.errors import QproxyError, RequestError
from qproxy.wire.realtime import Translation

PROTOCOL = "realtime"
"""OpenAI's sub-protocol, chosen where it is offered."""
BETA_PROTOCOL, BETA_FIELD = "openai-beta.realtime-v1", "realtime=v1"
SWITCHED = 101
MAX_REASON = 120
"""Bytes of a close frame's words (RFC 6455 5.5)."""


class _Client:
    """The client's end, as Quart has it."""

    async def receive(self) -> str | bytes:
        current.listen()
        message: str | bytes = await websocket.receive()
        return message

    async def send(self, text: str) -> None:
        await websocket.send(text)


class Realtime:
    """The view and its route."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def routes(self) -> Iterator[Route]:
        yield Route("/realtime", (), self._view, websocket=True)
        yield Route("/realtime", ("GET",), self._plain)

    async def _plain(self) -> Reply:
        """For who asks without a WebSocket's handshake."""
        message = "This path speaks WebSocket only (RFC 6455, or RFC 8441 over HTTP/2)."
        raise RequestError(message, status=426, code="websocket_required")

    async def _view(self) -> None:
        parts, record, stack = self._parts, current.record(), current.stack()
        bounds = parts.speech.bounds
        life = parts.lives.one(stack, bounds.timeout)
        with life.limited():
            model = websocket.args.get("model") or parts.door.default_model
            if not model:
                raise RequestError("you must provide a model parameter", param="model")
            await charge(parts, model, lambda: (0, 0))
            stack.callback(await parts.admission.enter())
            server, first = await connect(parts.relay, model, bounds, record.story, stack, current.nursery())
        translation = Translation(
            model,
            modern=not _wants_beta(),
            voices=parts.speech.voices,
            strict=parts.relay.policy.strict_params,
            event_prefix=f"event_{secrets.token_hex(8)}_",
        )

        async def pays(minutes: int) -> None:
            await charge_more(parts, translation.seen.tokens, minutes)

        session = Session(_Client(), server, translation, bounds, pays=pays)
        offered = websocket.requested_subprotocols
        await websocket.accept(subprotocol=PROTOCOL if PROTOCOL in offered else None)
        record.status, record.stream, record.first_byte, record.outcome = SWITCHED, True, record.seconds, "ok"
        stack.callback(_note, translation, record.overhead)
        try:
            with life.limited():
                ending = await session.run(first)
        except QproxyError as error:
            ending = stopped(error)
        await _end(session, ending)


def _wants_beta() -> bool:
    fields = current.headers()
    asked = [name.strip().lower() for name in str(fields.get("openai-beta", "")).split(",")]
    return BETA_FIELD in asked or BETA_PROTOCOL in websocket.requested_subprotocols


def _note(translation: Translation, overhead: float) -> None:
    """What the log should know of a session; all but its beginning was waiting for one end or the other."""
    record, seen = current.record(), translation.seen
    record.story.upstream_seconds = record.seconds - overhead
    record.story.usage = seen.usage
    record.story.ignored = tuple(seen.ignored)
    record.pieces, record.answered = seen.responses, record.seconds


async def _end(session: Session, ending: Ending) -> None:
    """The last words, for a client that listens."""
    record, reason = current.record(), ""
    record.outcome = ending.outcome
    if ending.error is not None:
        record.error = ending.error.code or ending.error.type
        reason = ending.error.message.encode()[:MAX_REASON].decode(errors="ignore")
        await session.fail(ending.error)
    await websocket.close(ending.code, reason)
    await trio.lowlevel.checkpoint()
