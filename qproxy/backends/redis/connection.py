"""One connection to the engine: commands leave together, replies return in their order.

`send` is synchronous and only appends, so that no cancellation can come between a command and its place in
the order; one task writes, one reads, and callers never touch the socket. A caller that is cancelled stops
waiting, and its reply is dropped when it comes.

The time of a connection runs from its oldest command without a reply: one that stays silent is closed.
Every error reply but a redirection closes it, too: a script that is missing, a server that became a replica,
loads its data or has no memory left are all a reason to start again from the handshake, after a pause.

What the engine pushes (RESP3) is no reply, and has a callback of its own.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import hiredis
import trio

from qproxy.backends.redis.errors import OutcomeUnknown, RedisError, RedisReplyError, RedisUnavailable
from qproxy.backends.redis.statistics import Statistics

MAX_UNANSWERED = 10_000
"""Commands without a reply; a further one is rejected."""
READ_BYTES = 65536
Argument: TypeAlias = str | bytes | int | float
OnReply: TypeAlias = Callable[[Any], None]
"""Called with a reply, or with the RedisError that took its place; it must not raise."""
OnPush: TypeAlias = Callable[[list[Any]], None]
"""Called with what the engine pushes; it must not raise."""


class Connection:
    """Commands over one stream."""

    def __init__(
        self, stream: trio.abc.Stream, *, timeout: float, on_push: OnPush = lambda message: None
    ) -> None:
        """`timeout`: seconds that a command may be without a reply."""
        self._stream = stream
        self._timeout = timeout
        self._on_push = on_push
        self._reader = hiredis.Reader(protocolError=RedisReplyError, replyError=RedisReplyError)
        self._unsent: list[bytes] = []
        self._unanswered: deque[tuple[float, OnReply]] = deque()
        self._wake = trio.Event()
        self._silence = trio.CancelScope()
        self.closed = False
        self.statistics = Statistics()
        self._read_at = 0.0

    def __repr__(self) -> str:
        return f"<Connection {len(self._unanswered)} unanswered>"

    def send(self, command: tuple[Argument, ...], on_reply: OnReply) -> None:
        """Append a command. Raises RedisUnavailable if the connection is closed or has too many."""
        if self.closed:
            raise RedisUnavailable("the connection is closed")
        if len(self._unanswered) >= MAX_UNANSWERED:
            raise RedisUnavailable(f"{MAX_UNANSWERED} commands have no reply")
        now = trio.current_time()
        if not self._unanswered:
            self._silence.deadline = now + self._timeout
        self._unsent.append(hiredis.pack_command(command))  # type: ignore[arg-type]  # its stub means tuple[..., ...]
        self._unanswered.append((now, on_reply))
        self._wake.set()

    def send_unanswered(self, command: tuple[Argument, ...]) -> None:
        """Append a command whose reply is pushed. Raises RedisUnavailable if the connection is closed."""
        if self.closed:
            raise RedisUnavailable("the connection is closed")
        self._unsent.append(hiredis.pack_command(command))  # type: ignore[arg-type]  # its stub means tuple[..., ...]
        self._wake.set()

    async def request(self, *command: Argument) -> Any:
        """Return the reply to a command. Raises a RedisError."""
        return await wait_reply(self.send, command)

    async def run(self) -> None:
        """Write and read until the connection ends, then raise why. Raises a RedisError."""
        error: RedisError = OutcomeUnknown("the connection was closed")
        try:
            with self._silence:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._write)
                    await self._read()
            error = OutcomeUnknown(f"no reply for {self._timeout:g} s (shared_state_connect_timeout)")
        except* (OSError, trio.BrokenResourceError, trio.ClosedResourceError) as group:
            error = OutcomeUnknown(f"the connection broke: {first_error(group)}")
        except* RedisError as group:
            error = first_error(group)
        finally:
            self.closed = True
            unanswered, self._unanswered = self._unanswered, deque()
            self.statistics.unknown += len(unanswered)
            for _, on_reply in unanswered:
                on_reply(OutcomeUnknown(str(error)))
            await trio.aclose_forcefully(self._stream)
        raise error

    async def _write(self) -> None:
        while True:
            await self._wake.wait()
            self._wake = trio.Event()
            data, self._unsent = b"".join(self._unsent), []
            await self._stream.send_all(data)

    async def _read(self) -> None:
        while True:
            data = await self._stream.receive_some(READ_BYTES)
            if not data:
                raise OutcomeUnknown("the server closed the connection")
            self._reader.feed(bytes(data))
            self._read_at = trio.current_time()
            while (reply := self._reader.gets()) is not False:
                self._deliver(reply)

    def _deliver(self, reply: Any) -> None:
        if isinstance(reply, hiredis.PushNotification):
            self._on_push(reply)
            return
        if not self._unanswered:
            if isinstance(reply, RedisReplyError):
                raise reply
            raise RedisReplyError(f"a reply to no command: {reply!r:.80}")
        sent_at, on_reply = self._unanswered.popleft()
        oldest = self._unanswered[0][0] if self._unanswered else math.inf
        self._silence.deadline = oldest + self._timeout
        self.statistics.seconds += self._read_at - sent_at
        if isinstance(reply, RedisReplyError):
            self.statistics.error += 1
        else:
            self.statistics.ok += 1
        on_reply(reply)
        if isinstance(reply, RedisReplyError) and not reply.is_redirection:
            self.closed = True  # before the tasks end: no command is sent to be lost
            raise reply


async def wait_reply(
    send: Callable[[tuple[Argument, ...], OnReply], None], command: tuple[Argument, ...]
) -> Any:
    """Send a command and return its reply. Raises a RedisError."""
    reply: list[Any] = []
    replied = trio.Event()

    def on_reply(value: Any) -> None:
        reply.append(value)
        replied.set()

    send(command, on_reply)
    await replied.wait()
    if isinstance(reply[0], Exception):
        raise reply[0]
    return reply[0]


async def query(stream: trio.abc.Stream, commands: Sequence[tuple[Argument, ...]], *, timeout: float) -> Any:
    """Return the reply to the last command, over a stream that is closed then. Raises a RedisError."""
    connection = Connection(stream, timeout=timeout)
    reply: Any = None
    failures: list[RedisReplyError] = []

    def on_reply(reply: Any) -> None:
        if isinstance(reply, RedisReplyError):  # ends the connection, and is the cause of what follows
            failures.append(reply)

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connection.run)
            for command in commands[:-1]:
                connection.send(command, on_reply)
            reply = await connection.request(*commands[-1])
            nursery.cancel_scope.cancel()
    except* RedisError as group:
        raise failures[0] if failures else first_error(group) from None
    return reply


def first_error(group: BaseExceptionGroup[Any]) -> Any:
    """Return the first exception of nested groups."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
