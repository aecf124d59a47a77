"""A body of sound, pulled at the client's pace.

Sound has no place for an error: a failure after the first byte ends the connection, so that no client takes
half of it for all. In events it is an error event.
"""

from __future__ import annotations

import logging
from typing import Protocol

import trio

from qproxy.server.http_response import StreamingBody
from qproxy.server.in_flight import InFlightRequest
from qproxy.server.streaming import internal_error
from qproxy.telemetry import RequestRecord
from qproxy.wire import json_codec
from qproxy.wire.endpoints import OPENAI
from qproxy.wire.errors import QproxyError

log = logging.getLogger("qproxy.server")


class ByteStream(Protocol):
    """Bytes in pieces."""

    async def receive(self) -> bytes:
        """Return some bytes, b"" at the end. Raises QproxyError."""
        ...


class SoundBody(StreamingBody):
    """The body of one response."""

    def __init__(
        self,
        stream: ByteStream,
        record: RequestRecord,
        in_flight: InFlightRequest,
        nursery: trio.Nursery,
        head: bytes,
        *,
        sse: bool = False,
    ) -> None:
        """`head` is sent before the first piece; the nursery's cancellation ends the connection."""
        self._stream = stream
        self._record = record
        self._in_flight = in_flight
        self._nursery = nursery
        self._head = head
        self._sse = sse

    async def __anext__(self) -> bytes:
        if self.finished:
            raise StopAsyncIteration
        data = b""
        failure: QproxyError | None = None
        with trio.CancelScope(deadline=self._in_flight.deadline) as scope:
            self._in_flight.on_end(scope.cancel)
            try:
                data = await self._stream.receive()
            except QproxyError as error:
                failure = error
            except Exception:
                log.exception("request %s failed after its response had started", self._record.id)
                failure = internal_error(self._record.id)
        if scope.cancelled_caught:
            failure = self._in_flight.error()
        if failure is not None:
            return await self._fail(failure)
        if not data:
            self.finished = True
            self._record.response_started = self._record.seconds
            self._record.outcome = "ok"
            raise StopAsyncIteration
        self._record.chunks += 1
        head, self._head = self._head, b""
        return head + data

    async def _fail(self, error: QproxyError) -> bytes:
        self.finished = True
        self._record.fail(error, "upstream_truncated")
        if self._sse:
            body = OPENAI.error_body(error, self._record.id)
            return b"event: error\ndata: " + json_codec.dumps(body) + b"\n\n"
        self._nursery.cancel_scope.cancel()
        await trio.sleep_forever()
        raise AssertionError("unreachable")
