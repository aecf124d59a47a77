"""Writers of HTTP/1.1 responses: through h11, or directly.

Exchanges whose request head was plain (`wire.http1`) are written directly: h11's connection is idle before
and after them. Both writers raise h11.LocalProtocolError for an invalid response.
"""

from __future__ import annotations

from typing import Any, Protocol

import h11
from hypercorn.utils import suppress_body

from qproxy.wire import http1


class ResponseWriter(Protocol):
    """A serializer of one response: its head, its body chunk by chunk, its end."""

    def head(self, status: int, headers: http1.HeaderList) -> bytes: ...

    def data(self, data: bytes) -> bytes: ...

    def end(self) -> bytes: ...

    def next_response(self) -> bool:
        """Prepare for the connection's next exchange, and return whether it can carry one."""
        ...


class H11Writer:
    """A response writer through h11, for any request."""

    def __init__(self, connection: Any, method: str) -> None:
        self._connection = connection
        self._method = method
        self._chunks = False
        self._bodyless = False

    def __repr__(self) -> str:
        return f"<H11Writer {self._connection.our_state}>"

    def head(self, status: int, headers: http1.HeaderList) -> bytes:
        head = self._sent(
            h11.Response(status_code=status, headers=headers, reason=http1.reason_phrase(status))
        )
        self._bodyless = suppress_body(self._method, status)
        has_length = any(name == b"content-length" for name, _ in headers)
        self._chunks = not has_length and self._connection.their_http_version != b"1.0"
        return head

    def data(self, data: bytes) -> bytes:
        if self._bodyless:
            return b""
        return _chunk(data) if self._chunks else self._sent(h11.Data(data=data))

    def end(self) -> bytes:
        return self._sent(h11.EndOfMessage())

    def _sent(self, event: Any) -> bytes:
        """Return the bytes of a part of a response; none for a client that violated the protocol."""
        try:
            return self._connection.send(event) or b""
        except h11.LocalProtocolError:
            if self._connection.their_state is not h11.ERROR:
                raise
            return b""

    def next_response(self) -> bool:
        connection = self._connection
        done = connection.our_state is h11.DONE and connection.their_state is h11.DONE
        if done:
            connection.start_next_cycle()
        return done


class FastWriter:
    """A response writer without h11, for a POST request over HTTP/1.1 with keep-alive."""

    def __init__(self, length: int) -> None:
        self.upcoming = length
        """Bytes of the request body that have not arrived."""
        self._remaining: int | None = None
        """Bytes of the response body that are not written; None for a chunked body."""
        self._bodyless = False
        self._keep_alive = True
        self._finished = False

    def __repr__(self) -> str:
        return f"<FastWriter upcoming={self.upcoming}>"

    def head(self, status: int, headers: http1.HeaderList) -> bytes:
        # This writer chooses the transfer encoding.
        fields = [field for field in headers if field[0] != b"transfer-encoding"]
        lengths = [value for name, value in fields if name == b"content-length"]
        self._keep_alive = not any(
            name == b"connection" and b"close" in value.lower() for name, value in fields
        )
        self._bodyless = suppress_body("POST", status)
        if lengths:
            self._remaining = 0 if self._bodyless else int(lengths[0])
        elif not self._bodyless:
            fields.append((b"transfer-encoding", b"chunked"))
        head = http1.write_response(status, fields)
        if head is None or len(lengths) > 1:
            raise h11.LocalProtocolError("invalid or conflicting response headers")
        return head

    def data(self, data: bytes) -> bytes:
        if self._bodyless:
            return b""
        if self._remaining is None:
            return _chunk(data)
        self._remaining -= len(data)
        if self._remaining < 0:
            raise h11.LocalProtocolError("response body longer than its Content-Length")
        return data

    def end(self) -> bytes:
        if self._remaining:
            raise h11.LocalProtocolError("response body shorter than its Content-Length")
        self._finished = True
        return b"" if self._remaining == 0 or self._bodyless else b"0\r\n\r\n"

    def next_response(self) -> bool:
        return self._finished and self._keep_alive and not self.upcoming


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data) if data else b""
