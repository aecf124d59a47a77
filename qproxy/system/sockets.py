"""Reads and writes of a socket with one system call each, where Trio's streams need more.

A read waits first: data is rarely there already, and a failed read costs more than waiting. A write never
waits: it returns how much the kernel accepted, and the caller sends the rest through the stream. Errors are
those of Trio's streams.
"""

from __future__ import annotations

import os
from typing import Any

import trio


def raw_socket(stream: Any) -> trio.socket.SocketType | None:
    """Return the socket of a plain socket stream; None for other streams, and where sockets are not files."""
    return stream.socket if isinstance(stream, trio.SocketStream) and os.name == "posix" else None


async def recv(socket: trio.socket.SocketType, size: int) -> bytes:
    """Wait for data and return at most `size` bytes, b"" at the end. Raises trio.BrokenResourceError."""
    while True:
        await trio.lowlevel.wait_readable(_descriptor(socket))
        data = recv_nowait(socket, size)
        if data is not None:
            return data


def recv_nowait(socket: trio.socket.SocketType, size: int) -> bytes | None:
    """Return available data, at most `size` bytes; b"" at the end, None before any."""
    number = _descriptor(socket)
    try:
        return os.read(number, size)
    except BlockingIOError:
        return None
    except OSError as error:
        raise trio.BrokenResourceError(f"socket connection broken: {error}") from error


def send_nowait(socket: trio.socket.SocketType, *pieces: bytes) -> int:
    """Return how many bytes the kernel accepted; 0 on an error, which the stream will raise."""
    try:
        return os.writev(socket.fileno(), pieces)
    except OSError:
        return 0


def _descriptor(socket: trio.socket.SocketType) -> int:
    number = socket.fileno()
    if number < 0:
        raise trio.ClosedResourceError("this socket was already closed")
    return number
