"""The emulated server: HTTP/1.1 by h11 over any Trio stream.

Written by hand rather than on a framework because its point is control of the bytes: it cuts, hangs, and
sends what is not HTTP. While it answers it watches for the client's end, and notes it in
`ReceivedRequest.disconnected`.
"""

from __future__ import annotations

import logging
import re
import socket
import struct
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeAlias
from urllib.parse import parse_qsl

import h11
import trio

from qproxy.bootstrap.models import package_catalog
from qproxy.emulator import chat, completions, families, native, realtime
from qproxy.emulator.errors import ApiError, bad_request
from qproxy.emulator.faults import (
    DONE,
    FAULTS,
    CloseConnection,
    PauseStep,
    RawBytes,
    ResetConnection,
    ScriptedReply,
    event,
    expand_repeats,
    json_reply,
)
from qproxy.emulator.identity import TOKEN_REFUSED, IdentityServer
from qproxy.emulator.prompt_cache import PromptCache
from qproxy.emulator.transcription import FileTasks
from qproxy.emulator.unverified import NATURAL, Unverified
from qproxy.system.listener import address_error
from qproxy.wire import json_codec
from qproxy.wire.bounded_h11 import BoundedConnection

MODELS_PATH, CHAT_PATH, COMPLETIONS_PATH = "/models", "/chat/completions", "/completions"
MAX_HEAD = 64 * 1024
log = logging.getLogger("qproxy.emulator")
LogFunction: TypeAlias = Callable[[bytes], Awaitable[None]]
PREFIXES = ("/compatible-mode/v1", "/v1")
MALFORMED_REQUEST_ERRORS = (TypeError, ValueError, LookupError, AttributeError, OverflowError, RecursionError)
"""What reading a body of another shape than the expected one raises."""


@dataclass(eq=False)
class ReceivedRequest:
    """A request that arrived."""

    method: str
    path: str
    headers: dict[str, str]
    body: Any
    """JSON, or the fields of a form; empty where it is neither."""
    query: dict[str, str] = field(default_factory=dict)
    disconnected: trio.Event = field(default_factory=trio.Event)
    """Set when the client closed before its answer was over."""

    @property
    def token(self) -> str:
        """The bearer token."""
        return self.headers.get("authorization", "").removeprefix("Bearer ")


class Emulator:
    """A Qwen server in the same Trio program."""

    def __init__(
        self,
        *,
        keys: set[str] | None = None,
        delay: float = 0.0,
        piece: int = 12,
        identity: IdentityServer | None = None,
        facts: Unverified = NATURAL,
        context: int | None = None,
    ) -> None:
        self.keys = keys
        """Accepted bearer tokens, besides those of the identity server; None accepts all others."""
        self.identity = identity or IdentityServer()
        self.delay = delay
        """Seconds between two chunks."""
        self.chunk_size = piece
        """Characters in one chunk."""
        self.requests: list[ReceivedRequest] = []
        self.sessions: list[realtime.RecordedSession] = []
        """What realtime sessions have heard."""
        self.open_connections = 0
        self.connections = 0
        self._script: deque[ScriptedReply] = deque()
        self._facts = facts
        self.context = context
        """Tokens that a prompt may have; None is no limit."""
        self.file_tasks = FileTasks()
        self._cache = PromptCache(trio.current_time, facts)
        self._models: dict[str, Callable[[ReceivedRequest], ScriptedReply]] = {
            CHAT_PATH: self._chat,
            COMPLETIONS_PATH: self._complete,
            **families.SERVICES,
            **self.file_tasks.post(),
            **dict.fromkeys(native.SERVICES, self._generate),
        }
        self._port = 0

    def __repr__(self) -> str:
        return f"<Emulator on {self._port}, {len(self.requests)} requests>"

    @property
    def port(self) -> int:
        """Return its base URL; available after the start."""
        return self._port

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def base_url(self) -> str:
        return f"{self.origin}/compatible-mode/v1"

    def script(self, *replies: ScriptedReply) -> None:
        """Answer the next requests to models (as a proxy: the next CONNECT) with these, in order."""
        self._script.extend(replies)

    def clear(self) -> None:
        """Forget what is left of the script."""
        self._script.clear()

    async def serve(
        self, port: int = 0, *, task_status: trio.TaskStatus[Emulator] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Serve on loopback until cancelled. Raises OSError, which names the address."""
        try:
            listeners = await trio.open_tcp_listeners(port, host="127.0.0.1")
        except OSError as error:
            raise OSError(address_error("127.0.0.1", port, error)) from None
        self._port = listeners[0].socket.getsockname()[1]

        async with trio.open_nursery() as nursery:
            await nursery.start(trio.serve_listeners, self._handle_alone, listeners)
            task_status.started(self)

    async def _handle_alone(self, stream: trio.abc.Stream) -> None:
        """Serve one connection, whose fault ends no other one."""
        try:
            await self.handle(stream)
        except Exception:
            log.exception("a connection of the emulator failed")

    async def handle(self, stream: trio.abc.Stream) -> None:
        """Serve one connection to its end."""
        self.open_connections += 1
        self.connections += 1
        http = BoundedConnection(h11.SERVER, MAX_HEAD)
        try:
            async with stream:
                while (seen := await self._read(stream, http)) is not None:
                    self.requests.append(seen)
                    denied = self._authentication_error(seen) if realtime.is_realtime(seen) else None
                    if denied is None and realtime.is_realtime(seen):
                        await realtime.serve(stream, http, seen, self.sessions)
                        return
                    if not await self._respond(stream, http, seen, denied):
                        return
                    http.start_next_cycle()
        except (trio.BrokenResourceError, trio.ClosedResourceError, h11.ProtocolError):
            return
        finally:
            self.open_connections -= 1

    async def _read(self, stream: trio.abc.Stream, http: h11.Connection) -> ReceivedRequest | None:
        head: h11.Request | None = None
        body = bytearray()
        while True:
            item = http.next_event()
            if item is h11.NEED_DATA:
                data = await stream.receive_some(65536)
                http.receive_data(bytes(data))
            elif isinstance(item, h11.Request):
                head = item
                if self._script and self._script[0].early:
                    return _received_request(head, b"")
            elif isinstance(item, h11.Data):
                body += item.data
            elif isinstance(item, h11.EndOfMessage) and head is not None:
                return _received_request(head, bytes(body))
            else:
                return None

    async def _respond(
        self,
        stream: trio.abc.Stream,
        http: h11.Connection,
        seen: ReceivedRequest,
        given: ScriptedReply | None = None,
    ) -> bool:
        """Send the reply, if none is given the request's own; whether the connection can go on."""
        whole = False
        gone = (trio.BrokenResourceError, trio.ClosedResourceError)

        async def watch() -> None:
            with suppress(*gone):
                while data := await stream.receive_some(65536):
                    http.receive_data(bytes(data))  # the next request, sent before we are done here
            seen.disconnected.set()
            nursery.cancel_scope.cancel()

        async def send() -> None:
            nonlocal whole
            with suppress(*gone):
                await write()
                whole = http.our_state is h11.DONE
            nursery.cancel_scope.cancel()

        async def write() -> None:
            reply = given or self._reply(seen)
            if reply.status is None:
                await self._play(stream, reply, stream.send_all)
                return

            async def say(data: bytes) -> None:
                await self._send(stream, http, h11.Data(data=data))

            fields = [("content-type", reply.content_type), ("x-request-id", "emu-1"), *reply.headers]
            await self._send(stream, http, h11.Response(status_code=reply.status, headers=fields))
            await self._play(stream, reply, say)
            if http.our_state is h11.SEND_BODY:
                await self._send(stream, http, h11.EndOfMessage())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            nursery.start_soon(send)
        return whole

    async def _send(self, stream: trio.abc.Stream, http: h11.Connection, item: h11.Event) -> None:
        data = http.send(item)
        if data:
            await stream.send_all(data)

    async def _play(self, stream: trio.abc.Stream, reply: ScriptedReply, say: LogFunction) -> None:
        for number, step in enumerate(expand_repeats(reply.steps)):
            if self.delay and number:
                await trio.sleep(self.delay)
            if isinstance(step, PauseStep):
                await trio.sleep(step.seconds)
            elif isinstance(step, CloseConnection | ResetConnection):
                if isinstance(step, ResetConnection):
                    _reset_on_close(stream)
                await trio.aclose_forcefully(stream)
                raise trio.ClosedResourceError
            elif isinstance(step, RawBytes):
                await stream.send_all(step.data)
            elif isinstance(step, bytes):
                await say(step)

    def _reply(self, seen: ReceivedRequest) -> ScriptedReply:
        path = next((seen.path.removeprefix(p) for p in PREFIXES if seen.path.startswith(p)), seen.path)
        if seen.method == "CONNECT":
            return self._script.popleft() if self._script else ScriptedReply(())
        origin = f"http://{seen.headers.get('host', '')}"
        is_native = path.startswith(native.ROOT)
        try:
            identity = self.identity.reply(seen.method, seen.path, seen.query, seen.body, origin)
            if identity is not None:
                return identity
            if seen.method == "GET" and seen.path in families.RESULTS:
                return families.RESULTS[seen.path](seen)
            if (public := self.file_tasks.public_reply(seen)) is not None:
                return public
            denied = self._authentication_error(seen)
            if denied is not None:
                return native.translate(denied) if is_native else denied
            if path == MODELS_PATH:
                data = [
                    {"id": m, "object": "model", "created": chat.CREATED, "owned_by": "system"}
                    for m in package_catalog().defaults["emulated"]
                ]
                return json_reply({"object": "list", "data": data})
            if path in self._models and seen.method == "POST":
                return self._scripted(seen.body, is_native) or self._models[path](seen)
            if (found := self.file_tasks.reply(seen)) is not None:
                return found
            raise ApiError(404, f"not found: {seen.method} {seen.path}", "NotFound")
        except ApiError as refusal:
            error = refusal
        except MALFORMED_REQUEST_ERRORS as fault:
            error = bad_request(type(fault).__name__)
        return json_reply(native.error(error.body) if is_native else error.body, error.status)

    def _authentication_error(self, seen: ReceivedRequest) -> ScriptedReply | None:
        """The refusal of who has no right to a model, or of a realtime session that was asked for by a
        fault's name."""
        token = seen.token
        if self.identity.has_code(token):
            if not self.identity.accepts_token(token):
                return TOKEN_REFUSED
        elif self.keys is not None and token not in self.keys:
            return FAULTS["fault-401"][1]
        if realtime.is_realtime(seen):
            return self._script.popleft() if self._script else realtime.rejection(seen.query.get("model", ""))
        return None

    def _scripted(self, body: Any, is_native: bool) -> ScriptedReply | None:
        """The reply that was asked for beforehand, or by the model's name."""
        if self._script:
            return self._script.popleft()
        if body.get("model") not in FAULTS:
            return None
        reply = FAULTS[body["model"]][1]
        return native.translate(reply) if is_native else reply

    def _chat(self, seen: ReceivedRequest) -> ScriptedReply:
        body = seen.body
        if (other := families.for_task(families.CHAT_TASKS, body.get("model"))) is not None:
            return other(seen)
        chat.validate(body, self._facts)
        chat.check_length(body, self.context)
        cached = self._cache.use(seen.token, body)
        if not body.get("stream"):
            return json_reply(chat.response(body, cached))
        chunks = chat.chunks(body, self.chunk_size, cached, self._facts)
        return ScriptedReply((*map(event, chunks), DONE))

    def _generate(self, seen: ReceivedRequest) -> ScriptedReply:
        """Answer in DashScope's native form."""
        if (other := families.for_task(families.NATIVE_TASKS, seen.body.get("model"))) is not None:
            return other(seen)
        service = native.SERVICES[seen.path]
        body = native.chat_request(seen.body, seen.headers.get("x-dashscope-sse") == "enable")
        native.validate(body, service, self._facts)
        chat.check_length(body, self.context)
        cached = self._cache.use(seen.token, body)
        if not body["stream"]:
            return json_reply(native.response(body, service, cached))
        return ScriptedReply(tuple(native.events(body, service, self.chunk_size, cached, self._facts)))

    def _complete(self, seen: ReceivedRequest) -> ScriptedReply:
        body = seen.body
        completions.validate(body)
        if not body.get("stream"):
            return json_reply(completions.response(body))
        return ScriptedReply((*(event(item) for item in completions.chunks(body, self.chunk_size)), DONE))


def _received_request(head: h11.Request, body: bytes) -> ReceivedRequest:
    headers = {name.decode(): value.decode("latin-1") for name, value in head.headers}
    target = head.target.decode()
    if target.startswith("http://"):  # as a proxy is asked; RFC 9112 3.2.2: every server takes it
        target = "/" + target.removeprefix("http://").partition("/")[2]
    path, _, query = target.partition("?")
    return ReceivedRequest(
        head.method.decode(), path, headers, _parse_body(headers, body), dict(parse_qsl(query))
    )


def _parse_body(headers: dict[str, str], body: bytes) -> Any:
    kind = headers.get("content-type", "")
    if kind.startswith("application/x-www-form-urlencoded"):
        return dict(parse_qsl(body.decode(errors="replace"), keep_blank_values=True))
    if kind.startswith("multipart/form-data"):
        return _parse_form(kind, body)
    try:
        return json_codec.loads(body) if body else None
    except ValueError:
        return {}  # which every path refuses


def _parse_form(kind: str, body: bytes) -> dict[str, Any]:
    """The fields of a form by name; files are bytes."""
    delimiter = b"--" + kind.partition("boundary=")[2].strip('"').encode()
    form: dict[str, Any] = {}
    for part in body.split(b"\r\n" + delimiter):
        head, found, value = part.removeprefix(delimiter).partition(b"\r\n\r\n")
        name = re.search(rb'; name="([^"]*)"', head)
        if found and name is not None:
            form[name[1].decode()] = value if b"; filename=" in head else value.decode(errors="replace")
    return form


def _reset_on_close(stream: trio.abc.Stream) -> None:
    """Let a socket's close be a reset (in memory there is no such thing, and it is a close)."""
    if isinstance(stream, trio.SocketStream):
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
