"""The answer to one request: its head, and its body as it comes.

Waiting for the next piece has two ends that are no loss, silence that the caller is not ready to wait through (`ReceiveTimeout`)
and an interruption, and two that are: the limits on silence and on the whole answer.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from types import TracebackType

import trio

from qproxy.transport.connection import ResponseHead, UpstreamConnection, format_seconds, timeout_error
from qproxy.transport.interruptible import ReceiveTimeout
from qproxy.wire.errors import UpstreamError


class UpstreamResponse:
    """The head of an answer, and its body as it comes."""

    def __init__(
        self,
        connection: UpstreamConnection,
        head: ResponseHead,
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
        """Seconds waited since something last came."""

    def __repr__(self) -> str:
        return f"<Response {self.status} from {self._connection.host}{', over' if self._finished else ''}>"

    def header(self, name: bytes) -> str | None:
        """The first field of this (lower-case) name."""
        return next((value.decode("latin-1") for key, value in self.headers if key == name), None)

    def interrupt(self) -> None:
        """Make the `receive` that is waiting, if there is one, raise Quiet."""
        if self._connection.interruptible is not None:
            self._connection.interruptible.interrupt()

    async def receive(self, until: float = math.inf) -> bytes:
        """Some of the body, everything that is there already in one piece; b"" at the end.

        Raises Quiet at `until` (Trio's clock): nothing is lost then, ask again.  Raises UpstreamError when the body
        breaks off, pauses for longer than `idle_timeout`, or goes on past `total_timeout`.
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
            return timeout_error(f"{host} did not end its answer", limits.total_timeout or 0)
        return timeout_error(f"{host} went silent in its answer and said nothing", limits.idle_timeout or 0)

    async def read(self, limit: int) -> bytes:
        """The whole rest of the body; UpstreamError when it is longer than `limit` bytes."""
        pieces, size = [], 0
        while data := await self.receive():
            pieces.append(data)
            size += len(data)
            if size > limit:
                message = f"{self._connection.host} sent an answer of more than {limit} bytes."
                raise UpstreamError(message, code="upstream_invalid_response")
        return b"".join(pieces)

    async def aclose(self) -> None:
        """Give the connection back if the body was read to its end, else close it at once.  Idempotent."""
        if not self._released:
            self._released = True
            await self._release(self._connection, self._connection.reusable)

    async def __aenter__(self) -> UpstreamResponse:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()
