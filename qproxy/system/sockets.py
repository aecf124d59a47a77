"""Bytes from and to a socket, with one question to the kernel where Trio's streams ask more.

A read waits first: the peer hardly ever has said something already, and asking in vain costs more than waiting.  A
write does not wait at all: it says how much the kernel took, and the rest is for the stream's patient way.  What the
network does is what Trio's streams raise for it.
"""

from __future__ import annotations

import os
from typing import Any

import trio


def raw_socket(stream: Any) -> trio.socket.SocketType | None:
    """The socket of a stream that is nothing but one; None for any other stream, and where sockets are no files."""
    return stream.socket if isinstance(stream, trio.SocketStream) and os.name == "posix" else None


async def recv(socket: trio.socket.SocketType, size: int) -> bytes:
    """At most `size` bytes, after waiting for them; b"" at the end."""
    while True:
        await trio.lowlevel.wait_readable(_descriptor(socket))
        data = recv_nowait(socket, size)
        if data is not None:
            return data


def recv_nowait(socket: trio.socket.SocketType, size: int) -> bytes | None:
    """What is there, at most `size` bytes; b"" at the end, None for nothing yet."""
    number = _descriptor(socket)
    try:
        return os.read(number, size)
    except BlockingIOError:
        return None
    except OSError as error:
        raise trio.BrokenResourceError(f"socket connection broken: {error}") from error


def send_nowait(socket: trio.socket.SocketType, *pieces: bytes) -> int:
    """How many bytes the kernel took at once; none when nobody is there, which the patient way finds out."""
    try:
        return os.writev(socket.fileno(), pieces)
    except OSError:
        return 0


def _descriptor(socket: trio.socket.SocketType) -> int:
    number = socket.fileno()
    if number < 0:
        raise trio.ClosedResourceError("this socket was already closed")
    return number
