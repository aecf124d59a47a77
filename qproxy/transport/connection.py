"""One HTTP/1.1 connection and the one response that it is carrying.

Every await here stands under a limit named in `Limits`; what the limit, the network or the peer does becomes
an `UpstreamError` at the line where it happens.  Messages name the host and nothing else of a request.
"""

from __future__ import annotations

import math
import select
import ssl
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType

import h11
import trio

from qproxy.transport.patience import Patient, Quiet
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


@contextmanager
def foreign_errors(doing: str, *, retry: Retry) -> Iterator[None]:
    """Network and protocol errors become ours."""
    try:
        yield
    except (trio.BrokenResourceError, trio.ClosedResourceError, ssl.SSLError, OSError, UnicodeError) as error:
        cause: BaseException = error.__cause__ or error
        while isinstance(cause, BaseExceptionGroup):  # one error for each address that was tried
            cause = cause.exceptions[0]
        reason = str(cause) or type(cause).__name__
        raise UpstreamError(f"{doing}: {reason[:200]}.", retry=retry) from error
    except h11.ProtocolError as error:
        message = f"{doing}: it does not speak proper HTTP ({str(error)[:200]})."
        raise UpstreamError(message, code="upstream_invalid_response", retry=retry) from error


class Connection:
    """An open stream with h11's state for it."""

    def __init__(self, stream: trio.abc.Stream, limits: Limits, host: str) -> None:
        self.stream = stream
        self.patient = _bottom(stream)
        self.http = h11.Connection(h11.CLIENT, max_incomplete_event_size=limits.max_header_bytes)
        self.limits = limits
        self.host = host
        self.requests = 0
        self.answered = False
        """Whether a byte of the current answer has come."""
        self.idle_since = 0.0

    def __repr__(self) -> str:
        return f"<Connection to {self.host}, {self.requests} requests, {self.http.our_state}>"

    @property
    def stale(self) -> bool:
        """Whether an idle connection cannot be used again: the peer has closed it or said something unasked."""
        socket = getattr(getattr(self.stream, "transport_stream", self.stream), "socket", None)
        if socket is None:
            return False
        return bool(_readable(socket))

    async def ask(self, request: HTTPRequest, fields: Headers) -> h11.Response:
        """Send a request and return the head of its response."""
        self.requests += 1
        self.answered = False
        await self._write(request, fields)
        limit = self.limits.first_byte_timeout
        with trio.move_on_after(_seconds(limit)):
            return await self._head()
        raise timed_out(f"{self.host} did not begin to answer", limit or 0)

    async def _write(self, request: HTTPRequest, fields: Headers) -> None:
        target = request.url.partition("://")[2]
        path = "/" + target.partition("/")[2]
        message = f"Cannot send the request to {self.host}"
        with foreign_errors(message, retry=Retry.QUICKLY):
            head = self.http.send(h11.Request(method=request.method, target=path, headers=list(fields)))
            body = self.http.send(h11.Data(data=request.body)) if request.body else b""
            end = self.http.send(h11.EndOfMessage())
        data = b"".join((head or b"", body or b"", end or b""))
        try:
            for start in range(0, len(data), READ_SIZE):
                with trio.fail_after(self.limits.write_timeout):
                    await self.stream.send_all(data[start : start + READ_SIZE])
        except trio.TooSlowError:
            raise timed_out(f"{self.host} did not take the request", self.limits.write_timeout) from None
        except (trio.BrokenResourceError, trio.ClosedResourceError, OSError):
            # A server may answer (413, 401) without reading the body to its end: look before giving up.
            self.http.send_failed()

    async def _head(self) -> h11.Response:
        for _ in range(MAX_INTERIM):
            event = await self.event(f"{self.host} broke off before it answered", Retry.QUICKLY)
            if isinstance(event, h11.Response):
                return event
            if not isinstance(event, h11.InformationalResponse):
                break
        message = f"{self.host} does not answer in HTTP."
        raise UpstreamError(message, code="upstream_invalid_response", retry=Retry.QUICKLY)

    async def event(self, doing: str, retry: Retry) -> h11.Event | type[h11.PAUSED]:
        """The next event of the response, reading as often as it takes."""
        while True:
            with foreign_errors(doing, retry=retry):
                event = self.http.next_event()
                if event is not h11.NEED_DATA:
                    return event  # type: ignore[return-value]
                data = await self.stream.receive_some(READ_SIZE)
                self.answered = self.answered or bool(data)
                self.http.receive_data(bytes(data))
            if not data:
                return self._at_end(doing, retry)

    def _at_end(self, doing: str, retry: Retry) -> h11.Event | type[h11.PAUSED]:
        """What the peer's end means: of a body without a length its end, of anything else that it broke off."""
        try:
            return self.http.next_event()  # type: ignore[return-value]
        except h11.RemoteProtocolError:
            raise UpstreamError(f"{doing}: it closed the connection.", retry=retry) from None

    def there(self) -> Iterator[h11.Event]:
        """The further events that need no more reading."""
        with foreign_errors(f"{self.host} broke its answer off", retry=Retry.QUICKLY):
            while True:
                event = self.http.next_event()
                if event is h11.NEED_DATA or event is h11.PAUSED:
                    return
                yield event  # type: ignore[misc]
                if isinstance(event, h11.EndOfMessage | h11.ConnectionClosed):
                    return

    @property
    def reusable(self) -> bool:
        """Whether both sides have ended this exchange and may begin another."""
        return self.http.our_state is h11.DONE and self.http.their_state is h11.DONE

    async def aclose(self) -> None:
        """Close the socket at once, without TLS's farewell (which could block)."""
        await trio.aclose_forcefully(self.stream)


def _seconds(limit: float | None) -> float:
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


class Response:
    """The head of an answer, and its body as it comes."""

    def __init__(
        self,
        connection: Connection,
        head: h11.Response,
        deadline: float,
        release: Callable[[Connection, bool], Awaitable[None]],
    ) -> None:
        self.status: int = head.status_code
        self.headers: Headers = tuple((bytes(name), bytes(value)) for name, value in head.headers)
        self._connection = connection
        self._deadline = deadline
        self._release = release
        self._over = False
        self._broken: UpstreamError | None = None
        """What to raise next: the answer broke off behind bytes that were good."""
        self._released = False
        self._silence = 0.0
        """Seconds waited since something last came."""

    def __repr__(self) -> str:
        return f"<Response {self.status} from {self._connection.host}{', over' if self._over else ''}>"

    def header(self, name: bytes) -> str | None:
        """The first field of this (lower-case) name."""
        return next((value.decode("latin-1") for key, value in self.headers if key == name), None)

    def interrupt(self) -> None:
        """Make the `receive` that is waiting, if there is one, raise Quiet."""
        if self._connection.patient is not None:
            self._connection.patient.interrupt()

    async def receive(self, until: float = math.inf) -> bytes:
        """Some of the body, everything that is there already in one piece; b"" at the end.

        Raises Quiet at `until` (Trio's clock): nothing is lost then, ask again.  Raises UpstreamError when the body
        breaks off, pauses for longer than `idle_timeout`, or goes on past `total_timeout`.
        """
        if self._over:
            return b""
        if self._broken is not None:
            raise self._broken
        began, patient = trio.current_time(), self._connection.patient
        if patient is not None:
            patient.until = until
        try:
            data = await self._receive(began)
        except Quiet:
            self._silence += trio.current_time() - began
            raise
        finally:
            if patient is not None:
                patient.until = math.inf
        self._silence = 0.0
        return data

    async def _receive(self, now: float) -> bytes:
        connection = self._connection
        limit = connection.limits.idle_timeout
        with trio.move_on_at(min(self._deadline, now + _seconds(limit) - self._silence)):
            event = await connection.event(f"{connection.host} broke its answer off", Retry.QUICKLY)
            if isinstance(event, h11.Data):
                return self._with_what_is_there(event.data)
            self._over = True
            return b""
        if trio.current_time() >= self._deadline:
            raise timed_out(f"{connection.host} did not end its answer", connection.limits.total_timeout or 0)
        raise timed_out(f"{connection.host} went silent in its answer and said nothing", limit or 0)

    def _with_what_is_there(self, first: bytes) -> bytes:
        pieces = [first]
        try:
            for event in self._connection.there():
                if isinstance(event, h11.Data):
                    pieces.append(event.data)
                else:
                    self._over = True
        except UpstreamError as error:
            self._broken = error
        return first if len(pieces) == 1 else b"".join(pieces)

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
            await self._release(self._connection, self._over and self._connection.reusable)

    async def __aenter__(self) -> Response:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()


def request_fields(request: HTTPRequest, origin: Origin, user_agent: str) -> Headers:
    """The request's header fields with those that are the transport's to add."""
    own = (
        (b"host", origin.host_field.encode()),
        (b"user-agent", user_agent.encode()),
        (b"accept-encoding", b"identity"),  # one decoding less for every chunk, and nothing buffers
    )
    length = ((b"content-length", str(len(request.body)).encode()),) if request.body else ()
    return (*own, *request.headers, *length)
