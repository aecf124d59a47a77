"""One realtime session, start to end: a client's WebSocket and a model's server's, with a translation between.

The idea: both ends belong to one nursery.  Each has a task that waits for it and passes on what it says, and that waits
again only when that has gone out: whoever does not listen makes the other wait, and nothing heaps up.  Whatever ends
one end ends the session: it has an `Ending`, and the client is told of it in a last `error` event and a close code.
A client that leaves cancels everything, and the server's end is closed with it.

Before the client is accepted the model's server has said its first word, so a refusal has its HTTP status and another
account may be tried (`trying`), as with any other request.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import trio

from qproxy.accounts import Account
from qproxy.auth import Credential
from qproxy.relay.relay import Relay
from qproxy.relay.retry import Tries
from qproxy.telemetry import Story
from qproxy.transport import Ended, Refused, WebSocket
from qproxy.transport.connection import seconds, timed_out
from qproxy.wire import json_codec as jsontext
from qproxy.wire import realtime
from qproxy.wire.dialects import error_mapping as errors
from qproxy.wire.errors import QproxyError, UpstreamError
from qproxy.wire.http_request import Headers
from qproxy.wire.realtime import Out, ToQwen, Translation

log = logging.getLogger("qproxy.realtime")
NORMAL, GOING_AWAY, TOO_BIG, POLICY, FAULT, RESTART, LATER = 1000, 1001, 1009, 1008, 1011, 1012, 1013
"""RFC 6455 7.4.1 and IANA's registry of close codes."""
MINUTE = 60.0
PASSED_ON = frozenset((NORMAL, GOING_AWAY, POLICY, TOO_BIG, LATER))
"""Close codes of the server that mean the same to the client."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a session may take.  Seconds and bytes."""

    timeout: float = 3600.0
    idle_timeout: float = 600.0
    ping_interval: float = 20.0
    max_message_bytes: int = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Speech:
    """How this server's sessions are."""

    bounds: Bounds = field(default_factory=Bounds)
    voices: Mapping[str, str] = field(default_factory=dict)
    """What a client may call voices, and Qwen's names for them."""


class Client(Protocol):
    """The client's end.  When it has gone, who waits for it is cancelled."""

    async def receive(self) -> str | bytes: ...

    async def send(self, text: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Ending:
    """How a session ended."""

    code: int
    """For the close frame."""
    error: QproxyError | None = None
    """For a last event."""
    outcome: str = "ok"
    """For the record."""


async def connect(
    relay: Relay, model: str, bounds: Bounds, story: Story, stack: AsyncExitStack, nursery: trio.Nursery
) -> tuple[WebSocket, str | bytes]:
    """A model's server's end, and its first word.  Raises QproxyError when no account could have one."""
    story.model = model
    story.served_model = served = relay.policy.aliases.resolve(model)
    tries = Tries(relay.accounts, served, story, task="realtime")
    began = trio.current_time()
    try:
        return await tries.until_begun(partial(_begin, relay, served, bounds, story, nursery), stack)
    finally:
        story.upstream_seconds = trio.current_time() - began


async def _begin(
    relay: Relay,
    model: str,
    bounds: Bounds,
    story: Story,
    nursery: trio.Nursery,
    account: Account,
    credential: Credential,
    stack: AsyncExitStack,
) -> tuple[WebSocket, str | bytes]:
    """One try with one account."""
    target = account.target(credential, model, story.carried)
    story.account = account.name
    headers: Headers = (*target.headers, (b"authorization", f"Bearer {credential.token}".encode()))
    socket = WebSocket(
        realtime.url(account.realtime_url, model),
        headers,
        ping_interval=bounds.ping_interval,
        max_message_bytes=bounds.max_message_bytes,
    )
    try:
        await nursery.start(socket.run, relay.transport)
    except Refused as refused:
        story.upstream_status = refused.status
        raise errors.upstream_error(
            refused.status, refused.headers, refused.body, plan=account.plan
        ) from None
    stack.push_async_callback(socket.aclose)
    return socket, await _first(socket, relay.transport.limits.first_byte_timeout, account.plan)


async def _first(socket: WebSocket, limit: float | None, plan: str) -> str | bytes:
    """The first event, when it is no error."""
    with trio.move_on_after(seconds(limit)):
        try:
            first = await socket.receive()
        except Ended as ended:
            words = f"The model's server closed the session at once ({ended.code}): {ended.reason or 'no reason given'}."
            data = {"error": {"message": words, "code": ended.reason}}
            raise errors.event_error(data, None, plan=plan) or UpstreamError(words) from None
        try:
            event = jsontext.loads(first)
        except ValueError:
            raise errors.unreadable(101, bytes(first, "utf-8") if isinstance(first, str) else first) from None
        error = errors.event_error(event, None, plan=plan)
        if error is not None:
            raise error
        return first
    raise timed_out("The model's server did not begin the session", limit or 0)


class Session:
    """A session under way."""

    def __init__(
        self,
        client: Client,
        server: WebSocket,
        translation: Translation,
        bounds: Bounds,
        *,
        pays: Callable[[int], Awaitable[object]],
    ) -> None:
        self._client = client
        self._server = server
        self._translation = translation
        self._bounds = bounds
        self._pays = pays
        """Called with 1 every minute, with 0 after a response; raises QproxyError when the session may not go on."""
        self._responses = 0
        self._moved = 0.0
        self._ending = Ending(NORMAL)

    def __repr__(self) -> str:
        return f"<Session {self._translation!r}>"

    async def run(self, first: str | bytes) -> Ending:
        """Pass on what both ends say until one of them ends.  `first` is what the server has said already."""
        self._moved = trio.current_time()
        async with trio.open_nursery() as nursery:
            self._life = nursery.cancel_scope
            nursery.start_soon(self._guarded, self._tell, first)
            nursery.start_soon(self._guarded, self._hear)
            nursery.start_soon(self._guarded, self._watch)
            nursery.start_soon(self._guarded, self._pay)
        return self._ending

    async def fail(self, error: QproxyError) -> None:
        """Tell the client of an error that ends the session."""
        await self._client.send(_text(self._translation.error(error)))

    async def _guarded(self, task: Callable[..., object], *args: object) -> None:
        """The first task to end has the last word."""
        ending = Ending(NORMAL)
        try:
            ending = await task(*args) or ending  # type: ignore[misc]
        except Ended as ended:
            ending = self._of(ended)
        except QproxyError as error:
            ending = (
                Ending(FAULT, error, "upstream_cut") if isinstance(error, UpstreamError) else stopped(error)
            )
        except Exception:
            log.exception("a realtime session failed")
            fault = QproxyError(
                "qproxy had an internal error; its log has the details.", code="internal_error"
            )
            ending = Ending(FAULT, fault, "failed")
        if not self._life.cancel_called:
            self._ending = ending
            self._life.cancel()

    def _of(self, ended: Ended) -> Ending:
        """What the end of the server's side is to the client."""
        if self._translation.seen.finished:
            return Ending(NORMAL)
        words = f": {ended.reason}" if ended.reason else "."
        message = f"The model's server closed the session (code {ended.code}){words}"
        error = UpstreamError(message, code="session_closed")
        if ended.code in PASSED_ON or 3000 <= ended.code < 5000:
            return Ending(ended.code, error, "upstream_cut")
        return Ending(FAULT, error, "upstream_cut")

    async def _hear(self) -> Ending:
        """From the client to the server."""
        while True:
            text = await self._client.receive()
            try:
                await self._pass(self._translation.from_client(text))
            except Ended:
                await trio.sleep_forever()  # what the server said before its end is still to be told

    async def _tell(self, first: str | bytes) -> Ending:
        """From the server to the client."""
        text = first
        while not self._translation.seen.finished:
            await self._pass(self._translation.from_qwen(text))
            seen = self._translation.seen
            if seen.responses > self._responses:
                self._responses = seen.responses
                await self._pays(0)
            if not seen.finished:
                text = await self._server.receive()
        return Ending(NORMAL)

    async def _pass(self, outs: Iterator[Out]) -> None:
        self._moved = trio.current_time()
        for out in outs:
            if isinstance(out, ToQwen):
                await self._server.send(_text(out.event))
            else:
                await self._client.send(_text(out.event))
            await trio.lowlevel.checkpoint()  # others have their turn between two pieces of sound

    async def _pay(self) -> Ending:
        while True:
            await trio.sleep(MINUTE)
            await self._pays(1)

    async def _watch(self) -> Ending:
        """Return when neither end has said anything for too long."""
        limit = self._bounds.idle_timeout
        while True:
            until = self._moved + limit
            if trio.current_time() >= until:
                break
            await trio.sleep_until(until)
        message = f"Neither end of the session said anything for {limit:g} s."
        return Ending(NORMAL, QproxyError(message, status=504, code="session_idle"), "failed")


def _text(event: object) -> str:
    return jsontext.dumps(event).decode()


def stopped(error: QproxyError) -> Ending:
    """How a session ends that this server does not go on with: it stops, or the session's time is up."""
    if error.code == "shutting_down":
        return Ending(RESTART, error, "shutting_down")
    return Ending(POLICY if error.status == 429 else NORMAL, error, "failed")


__all__ = ["Bounds", "Client", "Ending", "Session", "Speech", "connect", "stopped"]
