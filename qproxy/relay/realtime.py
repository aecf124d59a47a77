"""One realtime session: a client's WebSocket and an upstream's, with a translation between.

Both ends belong to one nursery. Each has a task that receives a message, sends it to the other end, and
receives again only when it was sent: a slow end makes the other one wait, and nothing accumulates. The end of
either side ends the session with a `SessionEnd`, which the client gets as a last `error` event and a close
code. The client's disconnect cancels everything, and the upstream's end is closed with it.

The client is accepted after the upstream's first event, so a rejection has its HTTP status and another
account may be tried (`retry`), as with any other request.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Protocol

import trio

from qproxy.accounts import Account
from qproxy.auth import Credential
from qproxy.relay.relay import Relay
from qproxy.relay.retry import Attempt, RetryLoop
from qproxy.telemetry import RelayRecord
from qproxy.transport import HandshakeRejected, UpstreamClosed, UpstreamTransport, UpstreamWebSocket
from qproxy.transport.connection import format_seconds, timeout_error
from qproxy.wire import json_codec, realtime
from qproxy.wire.dialects import error_mapping
from qproxy.wire.errors import QproxyError, UpstreamError
from qproxy.wire.http_request import Headers
from qproxy.wire.realtime import SessionTranslator, ToUpstream, TranslatedEvent

log = logging.getLogger("qproxy.relay")
NORMAL, GOING_AWAY, MESSAGE_TOO_BIG, POLICY_VIOLATION, INTERNAL_ERROR, RESTART, TRY_AGAIN_LATER = (
    1000,
    1001,
    1009,
    1008,
    1011,
    1012,
    1013,
)
"""RFC 6455 7.4.1 and IANA's registry of close codes."""
MINUTE = 60.0
FORWARDED_CODES = frozenset((NORMAL, GOING_AWAY, POLICY_VIOLATION, MESSAGE_TOO_BIG, TRY_AGAIN_LATER))
"""Close codes of the upstream that are passed on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionLimits:
    """Limits of one session. Seconds (`math.inf` for no limit) and bytes."""

    timeout: float
    idle_timeout: float
    ping_interval: float
    max_message_bytes: int


@dataclass(frozen=True, slots=True)
class RealtimeConfig:
    """The settings of realtime sessions."""

    bounds: SessionLimits
    voices: Mapping[str, str]
    """Qwen's voice by the client's name."""
    transcriber: str
    """The model that transcribes the speech of clients."""


class RealtimeClient(Protocol):
    """The client's end; its disconnect cancels the tasks that wait for it."""

    async def receive(self) -> str | bytes: ...

    async def send(self, text: str) -> None: ...


@dataclass(frozen=True, slots=True)
class SessionEnd:
    """The end of a session."""

    code: int
    """The code of the close frame."""
    error: QproxyError | None = None
    """The error of a last event, if any."""
    outcome: str = "ok"
    """The outcome for the request's record."""


async def connect_upstream(
    relay: Relay,
    model: str,
    bounds: SessionLimits,
    record: RelayRecord,
    stack: AsyncExitStack,
    nursery: trio.Nursery,
) -> tuple[UpstreamWebSocket, str | bytes]:
    """Return an upstream's end and its first event. Raises QproxyError if no account could open one."""
    record.model = model
    record.served_model = served = relay.names.route(model).served
    attempt = _SessionAttempt(relay.transport, served, bounds, record, nursery)
    loop = RetryLoop(relay.accounts, served, record, task="realtime")
    began = trio.current_time()
    try:
        return await loop.run(attempt, stack)
    finally:
        record.upstream_seconds = trio.current_time() - began


class _SessionAttempt(Attempt[tuple[UpstreamWebSocket, str | bytes]]):
    """The attempts of one session: its socket, and the first event received."""

    def __init__(
        self,
        transport: UpstreamTransport,
        model: str,
        limits: SessionLimits,
        record: RelayRecord,
        nursery: trio.Nursery,
    ) -> None:
        self._transport = transport
        self._model = model
        self._limits = limits
        self._record = record
        self._nursery = nursery

    async def start(
        self, account: Account, credential: Credential, stack: AsyncExitStack
    ) -> tuple[UpstreamWebSocket, str | bytes]:
        """Connect, and return the socket once the upstream has sent an event that is no error."""
        target = account.target(credential, self._model, self._record.trace_headers)
        self._record.account = account.name
        headers: Headers = (*target.headers, (b"authorization", f"Bearer {credential.token}".encode()))
        socket = UpstreamWebSocket(
            realtime.session_url(account.realtime_url, self._model),
            headers,
            ping_interval=self._limits.ping_interval,
            max_message_bytes=self._limits.max_message_bytes,
        )
        try:
            await self._nursery.start(socket.run, self._transport)
        except HandshakeRejected as refused:
            self._record.upstream_status = refused.status
            raise error_mapping.error_from_response(
                refused.status, refused.headers, refused.body, plan=account.plan
            ) from None
        stack.push_async_callback(socket.aclose)
        timeout = self._transport.limits.first_byte_timeout
        return socket, await _first_event(socket, timeout, account.plan)


async def _first_event(socket: UpstreamWebSocket, limit: float | None, plan: str) -> str | bytes:
    """Return the first event. Raises UpstreamError if it is an error."""
    with trio.move_on_after(format_seconds(limit)):
        try:
            first = await socket.receive()
        except UpstreamClosed as ended:
            reason = ended.reason or "no reason given"
            text = f"The upstream closed the session before its first event ({ended.code}): {reason}."
            data = {"error": {"message": text, "code": ended.reason}}
            raise error_mapping.error_from_event(data, None, plan=plan) or UpstreamError(text) from None
        try:
            event = json_codec.loads(first)
        except ValueError:
            raise error_mapping.invalid_response_error(
                101, bytes(first, "utf-8") if isinstance(first, str) else first
            ) from None
        error = error_mapping.error_from_event(event, None, plan=plan)
        if error is not None:
            raise error
        return first
    raise timeout_error(
        "The upstream sent no first event of the session", limit or 0, "upstream_first_byte_timeout"
    )


class RealtimeSession:
    """A session in progress."""

    def __init__(
        self,
        client: RealtimeClient,
        server: UpstreamWebSocket,
        translation: SessionTranslator,
        bounds: SessionLimits,
        *,
        pays: Callable[[int], Awaitable[object]],
    ) -> None:
        self._client = client
        self._server = server
        self._translation = translation
        self._limits = bounds
        self._charge = pays
        """Called with 1 every minute, with 0 after a response; raises QproxyError if the session must end."""
        self._responses = 0
        self._last_activity = 0.0
        self._end = SessionEnd(NORMAL)

    def __repr__(self) -> str:
        return f"<Session {self._translation!r}>"

    async def run(self, first: str | bytes) -> SessionEnd:
        """Relay the messages of both ends until one of them ends; `first` is the upstream's first event."""
        self._last_activity = trio.current_time()
        async with trio.open_nursery() as nursery:
            self._life = nursery.cancel_scope
            nursery.start_soon(self._run_guarded, self._from_upstream, first)
            nursery.start_soon(self._run_guarded, self._from_client)
            nursery.start_soon(self._run_guarded, self._watch_idle)
            nursery.start_soon(self._run_guarded, self._charge_usage)
        return self._end

    async def fail(self, error: QproxyError) -> None:
        """Send the client the error that ends the session."""
        await self._client.send(_text(self._translation.error(error)))

    async def _run_guarded(self, task: Callable[..., object], *args: object) -> None:
        """Run a task; the first one to end determines the session's end."""
        ending = SessionEnd(NORMAL)
        try:
            ending = await task(*args) or ending  # type: ignore[misc]
        except UpstreamClosed as ended:
            ending = self._outcome_of(ended)
        except QproxyError as error:
            ending = (
                SessionEnd(INTERNAL_ERROR, error, "upstream_truncated")
                if isinstance(error, UpstreamError)
                else end_for_error(error)
            )
        except Exception:
            log.exception("a realtime session failed")
            fault = QproxyError("Internal server error; see the qproxy log.", code="internal_error")
            ending = SessionEnd(INTERNAL_ERROR, fault, "internal_error")
        if not self._life.cancel_called:
            self._end = ending
            self._life.cancel()

    def _outcome_of(self, ended: UpstreamClosed) -> SessionEnd:
        """Return the session's end for an end of the upstream's side."""
        if self._translation.usage.finished:
            return SessionEnd(NORMAL)
        text = f": {ended.reason}" if ended.reason else "."
        message = f"The upstream closed the session (code {ended.code}){text}"
        error = UpstreamError(message, code="session_closed")
        if ended.code in FORWARDED_CODES or 3000 <= ended.code < 5000:
            return SessionEnd(ended.code, error, "upstream_truncated")
        return SessionEnd(INTERNAL_ERROR, error, "upstream_truncated")

    async def _from_client(self) -> SessionEnd:
        """Relay messages from the client to the upstream."""
        while True:
            text = await self._client.receive()
            try:
                await self._forward(self._translation.from_client(text))
            except UpstreamClosed:
                await (
                    trio.sleep_forever()
                )  # events that the upstream sent before its end still have to be relayed

    async def _from_upstream(self, first: str | bytes) -> SessionEnd:
        """Relay messages from the upstream to the client."""
        text = first
        while not self._translation.usage.finished:
            await self._forward(self._translation.from_upstream(text))
            seen = self._translation.usage
            if seen.responses > self._responses:
                self._responses = seen.responses
                await self._charge(0)
            if not seen.finished:
                text = await self._server.receive()
        return SessionEnd(NORMAL)

    async def _forward(self, outs: Iterator[TranslatedEvent]) -> None:
        self._last_activity = trio.current_time()
        for out in outs:
            if isinstance(out, ToUpstream):
                await self._server.send(_text(out.event))
            else:
                await self._client.send(_text(out.event))
            await trio.lowlevel.checkpoint()  # a checkpoint between two audio messages

    async def _charge_usage(self) -> SessionEnd:
        while True:
            await trio.sleep(MINUTE)
            await self._charge(1)

    async def _watch_idle(self) -> SessionEnd:
        """Return when neither end has sent anything within the idle timeout."""
        limit = self._limits.idle_timeout
        while True:
            until = self._last_activity + limit
            if trio.current_time() >= until:
                break
            await trio.sleep_until(until)
        message = f"Neither end of the session sent anything for {limit:g} s."
        return SessionEnd(NORMAL, QproxyError(message, status=504, code="session_idle"), "internal_error")


def _text(event: object) -> str:
    return json_codec.dumps(event).decode()


def end_for_error(error: QproxyError) -> SessionEnd:
    """Return the session's end for a shutdown, or for a session whose time is up."""
    if error.code == "shutting_down":
        return SessionEnd(RESTART, error, "shutting_down")
    return SessionEnd(POLICY_VIOLATION if error.status == 429 else NORMAL, error, "internal_error")


__all__ = [
    "RealtimeClient",
    "RealtimeConfig",
    "RealtimeSession",
    "SessionEnd",
    "SessionLimits",
    "connect_upstream",
    "end_for_error",
]
