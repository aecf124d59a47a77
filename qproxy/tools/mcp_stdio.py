"""A sandboxed MCP server over standard input and output, with its pipes as the SDK's streams.

The SDK's own launcher supports no sandbox, and starts the server from a thread (see `sandbox.process` for why
that is wrong). One JSON-RPC message is one line. When the server exits, the block raises `ServerExited`.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, TypeAlias

import trio

from qproxy.sandbox import ChildProcess, Launcher, SandboxPolicy
from qproxy.tools import messages

Streams: TypeAlias = tuple[Any, Any]
"""The SDK's pair of streams: messages from the server, messages to the server."""
READ_SIZE = 64 * 1024
MAX_STDERR = 200
SHUTDOWN_TIMEOUT = 1.0
"""Seconds for a server to exit after its standard input is closed."""
log = logging.getLogger("qproxy.tools")


class ServerExited(Exception):
    """Raised when the server exits, with the reason."""


def stdio_connection(
    argv: Sequence[str], launcher: Launcher, isolation: SandboxPolicy
) -> Callable[[], AbstractAsyncContextManager[Streams]]:
    """Return a function that starts a server and connects to it."""

    @asynccontextmanager
    async def connect() -> AsyncIterator[Streams]:
        import anyio

        async with launcher(argv, isolation) as child:
            incoming, received = anyio.create_memory_object_stream[Any](0)
            to_send, outgoing = anyio.create_memory_object_stream[Any](0)
            stderr_tail = _StderrTail()
            async with incoming, received, to_send, outgoing, trio.open_nursery() as nursery:
                nursery.start_soon(stderr_tail.listen, child)
                nursery.start_soon(_read, child, incoming, stderr_tail)
                nursery.start_soon(_write, child, outgoing)
                yield received, to_send
                await _shut_down(child)
                nursery.cancel_scope.cancel()

    return connect


async def _shut_down(child: ChildProcess) -> None:
    """Close a server's standard input, and give it time to exit."""
    with trio.move_on_after(SHUTDOWN_TIMEOUT):
        await child.stdin.aclose()
        await child.wait()


class _StderrTail:
    """The last line of standard error, often the only explanation of an exit."""

    def __init__(self) -> None:
        self.line = ""
        self.truncated = trio.Event()
        """Set at the end of standard error."""

    async def listen(self, child: ChildProcess) -> None:
        rest = b""
        while data := await child.stderr.receive_some(READ_SIZE):
            *lines, rest = (rest + data).split(b"\n")
            rest = rest[-MAX_STDERR:]
            for line in lines:
                self.line = line.decode("utf-8", "replace").strip()[:MAX_STDERR] or self.line
        self.truncated.set()


def _message(line: bytes) -> Any:
    """Return the message of a line, or None for an empty or invalid line. Raise ServerExited past the
    limits."""
    from mcp.shared.message import SessionMessage
    from mcp_types import jsonrpc_message_adapter

    if not line:
        return None
    try:
        messages.check(line)
        return SessionMessage(jsonrpc_message_adapter.validate_json(line, by_name=False))
    except messages.TooLarge as error:
        raise ServerExited(f"it sent {error}") from None
    except ValueError:
        log.debug("ignoring an invalid message of an MCP server")
        return None


async def _read(child: ChildProcess, incoming: Any, stderr_tail: _StderrTail) -> None:
    """Receive messages until the server exits, then raise ServerExited."""
    line: list[bytes] = []
    size = 0  # bytes of the incomplete line
    while data := await child.stdout.receive_some(READ_SIZE):
        first, *others = bytes(data).split(b"\n")
        line.append(first)
        size += len(first)
        for following in others:
            message = _message(b"".join(line).strip())
            await trio.lowlevel.checkpoint()
            if message is not None:
                await incoming.send(message)
            line, size = [following], len(following)
        if size > messages.MAX_MESSAGE:
            raise ServerExited(f"it sent a line of more than {messages.MAX_MESSAGE} bytes")
    code = await child.wait()
    with trio.move_on_after(SHUTDOWN_TIMEOUT):  # a child process of the server may keep standard error open
        await stderr_tail.truncated.wait()
    raise ServerExited(f"it exited with code {code}{': ' if stderr_tail.line else ''}{stderr_tail.line}")


async def _write(child: ChildProcess, outgoing: Any) -> None:
    """Send messages to the server until it closes its input, which its exit explains."""
    async for message in outgoing:
        text = message.message.model_dump_json(by_alias=True, exclude_unset=True)
        try:
            await child.stdin.send_all(text.encode() + b"\n")
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return
