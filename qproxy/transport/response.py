"""The response to one request: its head, and its body as it is received.

A read that ends by the caller's deadline or an interruption (`ReceiveTimeout`) loses nothing; the limits on
silence and on the whole response fail it.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from types import TracebackType

import trio

from qproxy.transport.connection import (
    UpstreamConnection,
    UpstreamResponseHead,
    format_seconds,
    timeout_error,
)
from qproxy.transport.interruptible import ReceiveTimeout
from qproxy.wire.errors import UpstreamError


class UpstreamResponse:
    """The head of a response, and its body as it is received."""

    def __init__(
        self,
        connection: UpstreamConnection,
        head: UpstreamResponseHead,
        deadline: float,
        release: Callable[[UpstreamConnection, bool], Awaitable[None]],
    ) -> None:
        self.status = head.status
        self.headers = head.headers
        self._connection = connection
        self._deadline = deadline
        self._release = release
        self._finished = False
        self._released = False
        self._read_timeout = 0.0
        """Seconds waited since bytes were last received."""

    def __repr__(self) -> str:
        return (
            f"<Response {self.status} from {self._connection.host}{', finished' if self._finished else ''}>"
        )

    def header(self, name: bytes) -> str | None:
        """Return the first header of this (lower-case) name, or None."""
        return next((value.decode("latin-1") for key, value in self.headers if key == name), None)

    def interrupt(self) -> None:
        """Make the waiting `receive`, if any, raise ReceiveTimeout."""
        if self._connection.interruptible is not None:
            self._connection.interruptible.interrupt()

    async def receive(self, until: float = math.inf) -> bytes:
        """Return some of the body, everything received already at once; b"" at the end.

        Raises ReceiveTimeout at `until` (Trio's clock): nothing is lost, read again. Raises UpstreamError if
        the body is truncated, pauses for longer than `idle_timeout`, or continues past `total_timeout`.
        """
        if self._finished:
            return b""
        there = self._connection.buffered()
        if there is not None:
            self._finished = not there
            return there
        connection, began = self._connection, trio.current_time()
        limit = min(
            self._deadline, began + format_seconds(connection.limits.idle_timeout) - self._read_timeout
        )
        try:
            data = await connection.read_until(min(until, limit), limit, connection.receive)
        except ReceiveTimeout:
            if trio.current_time() >= limit:
                raise self._timeout_error() from None
            self._read_timeout += trio.current_time() - began
            raise
        self._read_timeout, self._finished = 0.0, not data
        return data

    def _timeout_error(self) -> UpstreamError:
        limits, host = self._connection.limits, self._connection.host
        if trio.current_time() >= self._deadline:
            return timeout_error(
                f"Upstream {host} did not complete its response",
                limits.total_timeout or 0,
                "upstream_total_timeout",
            )
        return timeout_error(
            f"Upstream {host} sent no more of its response", limits.idle_timeout or 0, "upstream_read_timeout"
        )

    async def read(self, limit: int) -> bytes:
        """Return the rest of the body. Raises UpstreamError if it is longer than `limit` bytes."""
        pieces, size = [], 0
        while data := await self.receive():
            pieces.append(data)
            size += len(data)
            if size > limit:
                message = f"Upstream {self._connection.host} sent a response of more than {limit} bytes."
                raise UpstreamError(message, code="upstream_invalid_response")
        return b"".join(pieces)

    async def aclose(self) -> None:
        """Release the connection if the body was read to its end, otherwise close it at once. Idempotent."""
        if not self._released:
            self._released = True
            await self._release(self._connection, self._connection.reusable)

    async def __aenter__(self) -> UpstreamResponse:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()
