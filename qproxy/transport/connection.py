"""One HTTP/1.1 connection and the exchange that it carries.

Every await here stands under a limit named in `Limits`; what the limit, the network or the peer does becomes
an `UpstreamError` at the line where it happens.  Messages name the host and nothing else of a request.
"""

from __future__ import annotations

import math
import select
import ssl
from dataclasses import dataclass

import h11
import trio

from qproxy.transport.bodies import Body, Cut, body_of
from qproxy.transport.patience import Patient
from qproxy.transport.proxy import Origin
from qproxy.wire.errors import Retry, UpstreamError
from qproxy.wire.http import Headers, HTTPRequest

READ_SIZE = 64 * 1024
MAX_INTERIM = 20
"""1xx responses before the real one; more is a server gone wrong."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds, counts and bytes.  A time of None means no limit."""

    connect_timeout: float = 10.0
    """Name look-up, TCP, the proxy's CONNECT and TLS together."""
    write_timeout: float = 30.0
    """For one write of the request to make progress."""
    first_byte_timeout: float | None = 300.0
    """From the request's last byte to the response's head."""
    idle_timeout: float | None = 120.0
    """Silence within the response's body."""
    total_timeout: float | None = None
    """From `send` to the body's last byte."""
    pool_timeout: float = 5.0
    """Waiting for a free connection to a host that is at `max_connections`."""
    pool_idle: float = 60.0
    """How long an unused connection is kept."""
    max_connections: int = 1000
    """At once, to one host."""
    max_header_bytes: int = 64 * 1024


def timed_out(what: str, seconds: float) -> UpstreamError:
    """A time limit has passed."""
    message = f"{what} within {seconds:g} s."
    return UpstreamError(message, status=504, code="upstream_timeout", retry=Retry.NEVER)


class foreign_errors:
    """Network and protocol errors become ours."""

    __slots__ = ("_doing", "_retry")
    NETWORK = (trio.BrokenResourceError, trio.ClosedResourceError, ssl.SSLError, OSError, UnicodeError)

    def __init__(self, doing: str, *, retry: Retry) -> None:
        self._doing = doing
        self._retry = retry

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, self.NETWORK):
            cause: BaseException = error.__cause__ or error
            while isinstance(cause, BaseExceptionGroup):  # one error for each address that was tried
                cause = cause.exceptions[0]
            reason = str(cause) or type(cause).__name__
            raise UpstreamError(f"{self._doing}: {reason[:200]}.", retry=self._retry) from error
        if isinstance(error, h11.ProtocolError):
            message = f"{self._doing}: it does not speak proper HTTP ({str(error)[:200]})."
            raise UpstreamError(message, code="upstream_invalid_response", retry=self._retry) from error


class Connection:
    """An open stream, and the exchange that it carries."""

    def __init__(self, stream: trio.abc.Stream, limits: Limits, host: str) -> None:
        self.stream = stream
        self.patient = _bottom(stream)
        self.limits = limits
        self.host = host
        self.requests = 0
        self._begin()
        self.answered = False
        """Whether a byte of the current answer has come."""
        self.idle_since = 0.0

    def __repr__(self) -> str:
        return f"<Connection to {self.host}, {self.requests} requests, {self._http.our_state}>"

    def _begin(self) -> None:
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=self.limits.max_header_bytes)
        self._body: Body | None = None

    @property
    def stale(self) -> bool:
        """Whether an idle connection cannot be used again: the peer has closed it or said something unasked."""
        socket = getattr(getattr(self.stream, "transport_stream", self.stream), "socket", None)
        if socket is None:
            return False
        return bool(_readable(socket))

    async def ask(self, request: HTTPRequest, fields: Headers, deadline: float) -> h11.Response:
        """Send a request and return the head of its response; all of that until the deadline at most."""
        self.requests += 1
        self.answered = False
        self._begin()
        await self._write(request, fields)
        limit = self.limits.first_byte_timeout
        with trio.move_on_at(min(deadline, trio.current_time() + seconds(limit))):
            return await self._head()
        if trio.current_time() >= deadline:
            raise timed_out(f"{self.host} did not end its answer", self.limits.total_timeout or 0)
        raise timed_out(f"{self.host} did not begin to answer", limit or 0)

    async def _write(self, request: HTTPRequest, fields: Headers) -> None:
        target = request.url.partition("://")[2]
        path = "/" + target.partition("/")[2]
        message = f"Cannot send the request to {self.host}"
        with foreign_errors(message, retry=Retry.QUICKLY):
            head = self._http.send(h11.Request(method=request.method, target=path, headers=list(fields)))
            body = self._http.send(h11.Data(data=request.body)) if request.body else b""
            end = self._http.send(h11.EndOfMessage())
        data = b"".join((head or b"", body or b"", end or b""))
        try:
            for start in range(0, len(data), READ_SIZE):
                with trio.fail_after(self.limits.write_timeout):
                    await self.stream.send_all(data[start : start + READ_SIZE])
        except trio.TooSlowError:
            raise timed_out(f"{self.host} did not take the request", self.limits.write_timeout) from None
        except (trio.BrokenResourceError, trio.ClosedResourceError, OSError):
            # A server may answer (413, 401) without reading the body to its end: look before giving up.
            self._http.send_failed()

    async def _head(self) -> h11.Response:
        for _ in range(MAX_INTERIM):
            event = await self._event(f"{self.host} broke off before it answered")
            if isinstance(event, h11.Response):
                self._body = body_of(self._http, event)
                return event
            if not isinstance(event, h11.InformationalResponse):
                break
        message = f"{self.host} does not answer in HTTP."
        raise UpstreamError(message, code="upstream_invalid_response", retry=Retry.QUICKLY)

    async def _event(self, doing: str) -> h11.Event | type[h11.PAUSED]:
        """The next event of the response's head, reading as often as it takes."""
        while True:
            with foreign_errors(doing, retry=Retry.QUICKLY):
                event = self._http.next_event()
                if event is not h11.NEED_DATA:
                    return event  # type: ignore[return-value]
                data = await self.stream.receive_some(READ_SIZE)
                self.answered = self.answered or bool(data)
                self._http.receive_data(bytes(data))
            if not data:
                raise UpstreamError(f"{doing}: it closed the connection.", retry=Retry.QUICKLY)

    def there(self) -> bytes | None:
        """All of the body that needs no more reading; b"" at its end, None when that is nothing."""
        body = self._body
        assert body is not None
        data = body.drain()
        return data if data or body.over else None

    async def receive(self) -> bytes:
        """Some of the response's body, all that is there in one piece; b"" at its end."""
        body = self._body
        assert body is not None
        doing = f"{self.host} broke its answer off"
        with foreign_errors(doing, retry=Retry.QUICKLY):
            while (data := self.there()) is None:
                try:
                    body.check()
                except Cut:
                    raise UpstreamError(f"{doing}: it closed the connection.", retry=Retry.QUICKLY) from None
                body.feed(bytes(await self.stream.receive_some(READ_SIZE)))
        return data

    @property
    def reusable(self) -> bool:
        """Whether both sides have ended this exchange and may begin another."""
        body = self._body
        return body is not None and body.over and body.clean and self._http.our_state is h11.DONE

    async def aclose(self) -> None:
        """Close the socket at once, without TLS's farewell (which could block)."""
        await trio.aclose_forcefully(self.stream)


def seconds(limit: float | None) -> float:
    """A limit as a number."""
    return math.inf if limit is None else limit


def _bottom(stream: trio.abc.Stream) -> Patient | None:
    """Where the stream waits for bytes, below TLS and proxies."""
    while not isinstance(stream, Patient):
        if not hasattr(stream, "transport_stream"):
            return None
        stream = stream.transport_stream
    return stream


def _readable(socket: trio.socket.SocketType) -> bool:
    poll = select.poll()
    poll.register(socket.fileno(), select.POLLIN)
    return bool(poll.poll(0))


def request_fields(request: HTTPRequest, origin: Origin, user_agent: str) -> Headers:
    """The request's header fields with those that are the transport's to add."""
    own = (
        (b"host", origin.host_field.encode()),
        (b"user-agent", user_agent.encode()),
        (b"accept-encoding", b"identity"),  # one decoding less for every chunk, and nothing buffers
    )
    length = ((b"content-length", str(len(request.body)).encode()),) if request.body else ()
    return (*own, *request.headers, *length)
