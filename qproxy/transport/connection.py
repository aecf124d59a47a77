"""One HTTP/1.1 connection and the exchange that it carries.

`wire.http1` writes a request's head and reads a response's in its common form; for any other one h11 gets the
bytes sent and received.

Every await has a limit of `TransportLimits`; timeouts and errors of the network or the peer become an
`UpstreamError` at the line where they occur. Messages name the host and nothing else of a request.
"""

from __future__ import annotations

import math
import os
import select
import ssl
from collections.abc import Awaitable, Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypeVar

import h11
import trio

from qproxy.transport.body_readers import (
    BodyReader,
    ChunkedReader,
    ContentLengthReader,
    IncompleteBody,
    body_reader_for,
)
from qproxy.transport.interruptible import InterruptibleStream, ReceiveTimeout
from qproxy.transport.proxy import Origin
from qproxy.wire import http1
from qproxy.wire.bounded_h11 import BoundedConnection
from qproxy.wire.errors import RetryHint, UpstreamError
from qproxy.wire.http_request import Headers, HTTPRequest, Upload

READ_SIZE = 64 * 1024
T = TypeVar("T")
MAX_INTERIM = 20
"""Maximum 1xx responses before the final one; more is a broken server."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TransportLimits:
    """Limits of connections to upstreams. Seconds (None for no limit), counts and bytes."""

    connect_timeout: float
    """DNS lookup, TCP, the proxy's handshake (CONNECT, SOCKS) and TLS together."""
    write_timeout: float
    """For one write of the request to make progress."""
    first_byte_timeout: float | None
    """From the request's last byte to the response's head."""
    idle_timeout: float | None
    """Silence within the response's body."""
    total_timeout: float | None
    """From `send` to the body's last byte."""
    pool_timeout: float
    """Waiting for a free connection to a host that is at `max_connections`."""
    pool_idle: float
    """Seconds that an unused connection is kept."""
    max_connections: int
    """Concurrent connections to one host."""
    max_head_bytes: int = 64 * 1024
    """Bytes of a response's head; not a setting."""


def timeout_error(failure: str, seconds: float, setting: str) -> UpstreamError:
    """Return the error of a time limit that has passed, named by its setting."""
    message = f"{failure} within {seconds:g} s ({setting})."
    return UpstreamError(message, status=504, code="upstream_timeout", retry=RetryHint.NEVER)


class map_errors:
    """A context that turns network and protocol errors into UpstreamError."""

    __slots__ = ("_failure", "_retry")
    NETWORK = (trio.BrokenResourceError, trio.ClosedResourceError, ssl.SSLError, OSError, UnicodeError)

    def __init__(self, failure: str, *, retry: RetryHint) -> None:
        self._failure = failure
        self._retry = retry

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, self.NETWORK):
            cause: BaseException = error.__cause__ or error
            while isinstance(cause, BaseExceptionGroup):  # one error per address
                cause = cause.exceptions[0]
            raise UpstreamError(f"{self._failure}: {_reason(cause)[:200]}.", retry=self._retry) from error
        if isinstance(error, h11.ProtocolError):
            message = f"{self._failure}: invalid HTTP ({str(error)[:200]})."
            raise UpstreamError(message, code="upstream_invalid_response", retry=self._retry) from error


def _reason(error: BaseException) -> str:
    """Return the reason of a network error, without its number and its place in OpenSSL's source."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate verify failed: {error.verify_message}"
    if isinstance(error, OSError) and not isinstance(error, ssl.SSLError) and error.errno:
        reason = os.strerror(error.errno) if error.errno > 0 else error.strerror  # getaddrinfo's are negative
        return (reason or str(error)).rstrip(".")
    return str(error) or type(error).__name__


class UpstreamResponseHead(NamedTuple):
    """The head of a response."""

    status: int
    headers: Headers


class UpstreamConnection:
    """An open stream, and its current exchange."""

    def __init__(
        self, stream: trio.abc.Stream, limits: TransportLimits, host: str, origin: bytes = b""
    ) -> None:
        self.stream = stream
        self._origin = origin
        """Prefix of a path: a forwarding proxy needs the origin of a request."""
        self.interruptible = _interruptible(stream)
        self.limits = limits
        self.host = host
        self.requests = 0
        self._http: h11.Connection | None = None
        """h11's connection, for an exchange beyond the common case."""
        self._body: BodyReader | None = None
        self._keep_alive = True
        """Whether another exchange may follow this one."""
        self.response_started = False
        """Whether a byte of the current response was received."""
        self.idle_since = 0.0

    def __repr__(self) -> str:
        return f"<Connection to {self.host}, {self.requests} requests, {self._body or 'no response yet'}>"

    @property
    def is_stale(self) -> bool:
        """Return whether an idle connection is unusable: the peer has closed it or sent unsolicited bytes."""
        socket = getattr(getattr(self.stream, "transport_stream", self.stream), "socket", None)
        if socket is None:
            return False
        return bool(_readable(socket))

    async def send_request(
        self, request: HTTPRequest, fields: Headers, deadline: float
    ) -> UpstreamResponseHead:
        """Send a request and return the head of its response, by the deadline."""
        self.requests += 1
        self.response_started = False
        self._http, self._body, self._keep_alive = None, None, True
        await self._write(request, fields)
        limit, setting = request.first_byte_timeout or (
            self.limits.first_byte_timeout,
            "upstream_first_byte_timeout",
        )
        until = min(deadline, trio.current_time() + format_seconds(limit))
        with suppress(ReceiveTimeout):
            return await self.read_until(until, until, partial(self._read_head, request, fields))
        if trio.current_time() >= deadline:
            raise timeout_error(
                f"Upstream {self.host} did not complete its response",
                self.limits.total_timeout or 0,
                "upstream_total_timeout",
            )
        raise timeout_error(f"Upstream {self.host} sent no response", limit or 0, setting)

    def _target(self, request: HTTPRequest) -> bytes:
        """Return the request target: the path, in absolute form for a proxy (RFC 9112 3.2)."""
        return self._origin + b"/" + request.url.partition("://")[2].partition("/")[2].encode()

    async def _write(self, request: HTTPRequest, fields: Headers) -> None:
        head = http1.write_request(request.method.encode(), self._target(request), fields)
        if head is None:
            with map_errors(f"Cannot send the request to {self.host}", retry=RetryHint.SOON):
                head = self._send_with_h11(request, fields)
        sent = self.interruptible.send_nowait(head, request.body) if self.interruptible is self.stream else 0
        if sent < len(head) + len(request.body) or request.upload is not None:
            body = memoryview(request.body)[max(0, sent - len(head)) :]
            await self._write_rest(head[sent:], body, request.upload)

    async def _write_rest(self, head: bytes, body: memoryview, upload: Upload | None) -> None:
        first = max(0, READ_SIZE - len(head))
        try:
            await self._send_all(head + body[:first])
            for start in range(first, len(body), READ_SIZE):
                await self._send_all(body[start : start + READ_SIZE])
            if upload is not None:
                async with aclosing(upload.chunks()) as chunks:
                    async for chunk in chunks:
                        await self._send_all(chunk)
        except trio.TooSlowError:
            failure, limit = f"Upstream {self.host} did not accept the request", self.limits.write_timeout
            raise timeout_error(failure, limit, "upstream_write_timeout") from None
        except (trio.BrokenResourceError, trio.ClosedResourceError, OSError):
            # A server may respond (413, 401) without reading the whole body: read its response first.
            self._keep_alive = False

    async def _send_all(self, data: bytes | memoryview) -> None:
        with trio.fail_after(self.limits.write_timeout):
            await self.stream.send_all(data)

    def _send_with_h11(self, request: HTTPRequest, fields: Headers) -> bytes:
        """Hand the exchange over to h11, and return the request's head as h11 writes it."""
        http = self._http = BoundedConnection(h11.CLIENT, self.limits.max_head_bytes)
        head = http.send(
            h11.Request(method=request.method, target=self._target(request), headers=list(fields))
        )
        if request.content_length:
            body: Any = _Sized(request.content_length)
            http.send_with_data_passthrough(h11.Data(data=body))
        http.send(h11.EndOfMessage())
        return head or b""

    async def _read_head(self, request: HTTPRequest, fields: Headers) -> UpstreamResponseHead:
        failure = f"Upstream {self.host} closed the connection without sending a response"
        with map_errors(failure, retry=RetryHint.SOON):
            data = await self._read_more(failure)
            by_hand, limit = self._http is None and request.method != "HEAD", self.limits.max_head_bytes
            plain = http1.parse_response(data, limit) if by_hand else None
            if plain is not None:
                rest = data[plain.end :]
                self._body = (
                    ChunkedReader(rest)
                    if plain.content_length is None
                    else ContentLengthReader(plain.content_length, rest)
                )
                self._keep_alive = self._keep_alive and plain.keep_alive
                return UpstreamResponseHead(plain.status, tuple(plain.headers))
            if self._http is None:
                self._send_with_h11(request, fields)
            return await self._read_head_with_h11(data, failure)

    async def _read_head_with_h11(self, data: bytes, failure: str) -> UpstreamResponseHead:
        http = self._http
        assert http is not None
        http.receive_data(data)
        for _ in range(MAX_INTERIM):
            while (event := http.next_event()) is h11.NEED_DATA:
                http.receive_data(await self._read_more(failure))
            if isinstance(event, h11.Response):
                self._body = body_reader_for(http, event)
                names = {name for name, _ in event.headers}
                if {
                    b"content-length",
                    b"transfer-encoding",
                } <= names:  # RFC 9112 6.3: close it after the response
                    self._keep_alive = False
                fields = tuple((bytes(name), bytes(value)) for name, value in event.headers)
                return UpstreamResponseHead(event.status_code, fields)
            if not isinstance(event, h11.InformationalResponse):
                break
        message = f"Upstream {self.host} sent an invalid HTTP response."
        raise UpstreamError(message, code="upstream_invalid_response", retry=RetryHint.SOON)

    async def _read_more(self, failure: str) -> bytes:
        """Return the next bytes of the response's head. Raises UpstreamError with `failure` at the end."""
        data = bytes(await self.stream.receive_some(READ_SIZE))
        self.response_started = self.response_started or bool(data)
        if not data:
            raise UpstreamError(f"{failure}.", retry=RetryHint.SOON)
        return data

    def buffered(self) -> bytes | None:
        """Return the body that is buffered; b"" at its end, None if nothing is."""
        body = self._body
        assert body is not None
        data = body.take_buffered()
        return data if data or body.finished else None

    async def receive(self) -> bytes:
        """Read some more of the response's body; b"" at its end."""
        body = self._body
        assert body is not None
        failure = f"Upstream {self.host} closed the connection before the response was complete"
        with map_errors(failure, retry=RetryHint.SOON):
            while True:
                try:
                    body.raise_error()
                except IncompleteBody:
                    raise UpstreamError(f"{failure}.", retry=RetryHint.SOON) from None
                body.feed(bytes(await self.stream.receive_some(READ_SIZE)))
                data = self.buffered()
                if data is not None:
                    return data

    async def read_until(self, until: float, limit: float, read: Callable[[], Awaitable[T]]) -> T:
        """Return the result of `read`. Raises ReceiveTimeout at `until`.

        `limit` applies to the whole operation: over TLS a read may have to write too.
        """
        if self.interruptible is not None:
            self.interruptible.deadline = until
        if self.interruptible is self.stream:
            return await read()
        with trio.move_on_at(limit):
            return await read()
        raise ReceiveTimeout

    @property
    def reusable(self) -> bool:
        """Return whether both sides have ended this exchange and may start another."""
        body, http = self._body, self._http
        over = body is not None and body.finished and body.reusable
        return over and self._keep_alive and (http is None or http.our_state is h11.DONE)

    async def aclose(self) -> None:
        """Close the socket at once, without TLS's close alert (which could block)."""
        await trio.aclose_forcefully(self.stream)


class _Sized:
    """The length of a body: h11 counts its bytes, which are written elsewhere."""

    def __init__(self, length: int) -> None:
        self._length = length

    def __len__(self) -> int:
        return self._length


def format_seconds(limit: float | None) -> float:
    """Return a limit as a number, `math.inf` for none."""
    return math.inf if limit is None else limit


def _interruptible(stream: trio.abc.Stream) -> InterruptibleStream | None:
    """Return the interruptible stream below TLS and proxies."""
    while not isinstance(stream, InterruptibleStream):
        if not hasattr(stream, "transport_stream"):
            return None
        stream = stream.transport_stream
    return stream


def _readable(socket: trio.socket.SocketType) -> bool:
    poll = select.poll()
    poll.register(socket.fileno(), select.POLLIN)
    return bool(poll.poll(0))


def request_headers(
    request: HTTPRequest, origin: Origin, user_agent: str, proxy_authorization: str | None = None
) -> Headers:
    """Return the request's header fields with those that the transport adds."""
    own: Headers = (
        (b"host", origin.host_header.encode()),
        (b"user-agent", user_agent.encode()),
        (b"accept-encoding", b"identity"),  # saves decoding every chunk, and prevents buffering
    )
    size = request.content_length
    length = ((b"content-length", str(size).encode()),) if size else ()
    if proxy_authorization is not None:
        own = (*own, (b"proxy-authorization", proxy_authorization.encode()))
    return (*own, *request.headers, *length)
