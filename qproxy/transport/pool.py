"""The connection pool: assigns connections to requests and reuses them.

A slot of the host is acquired before a connection is made and released with it in any case; idle connections
hold no slot. The last one used is reused first, so that the others expire.
"""

from __future__ import annotations

import ssl
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import h11
import trio

from qproxy.transport import socks
from qproxy.transport.connection import (
    TransportLimits,
    UpstreamConnection,
    map_errors,
    request_headers,
    timeout_error,
)
from qproxy.transport.interruptible import InterruptibleStream
from qproxy.transport.proxy import Origin, ProxyServer, ProxySettings
from qproxy.transport.response import UpstreamResponse
from qproxy.version import VERSION
from qproxy.wire.bounded_h11 import BoundedConnection
from qproxy.wire.errors import RetryHint, UpstreamError
from qproxy.wire.http_request import HTTPRequest

ConnectFunction: TypeAlias = Callable[[str, int], Awaitable[trio.abc.Stream]]
PROXY_AUTHENTICATION_REQUIRED = 407
PoolKey: TypeAlias = tuple[Origin, ProxyServer | None]


@dataclass(frozen=True, slots=True)
class PoolStatistics:
    """The pool's current numbers."""

    open: int
    """Connections in use or idle."""
    idle: int
    created: int
    """Connections made since the start."""


class _HostPool:
    """The connections to one origin through one proxy."""

    def __init__(self, limits: TransportLimits) -> None:
        self.slots = trio.CapacityLimiter(limits.max_connections)
        self.idle: deque[UpstreamConnection] = deque()
        """Idle connections, the last used one last."""


class UpstreamTransport:
    """A client of HTTP/1.1 upstreams that reuses its connections."""

    def __init__(
        self,
        limits: TransportLimits,
        *,
        proxies: ProxySettings | None = None,
        ssl_context: ssl.SSLContext | None = None,
        connect: ConnectFunction = trio.open_tcp_stream,
        user_agent: str = f"qproxy/{VERSION}",
    ) -> None:
        self.limits = limits
        self._proxies = proxies or ProxySettings()
        self._ssl_context = ssl_context
        self._connect = connect
        self._user_agent = user_agent
        self._hosts: dict[PoolKey, _HostPool] = {}
        self._created = 0

    def __repr__(self) -> str:
        return f"<Transport {self.statistics()}>"

    def statistics(self) -> PoolStatistics:
        idle = sum(len(host.idle) for host in self._hosts.values())
        busy = sum(host.slots.borrowed_tokens for host in self._hosts.values())
        return PoolStatistics(open=busy + idle, idle=idle, created=self._created)

    async def send(self, request: HTTPRequest) -> UpstreamResponse:
        """Send a request, and return the response with its head; the caller closes it (it is a context
        manager).

        Raises UpstreamError without a connection, a response in time, or valid HTTP.
        """
        key = origin, proxy = self.route(request.url)
        host = self._host(key)
        forwarded = proxy is not None and proxy.is_forward_proxy_for(origin)
        total = self.limits.total_timeout
        deadline = float("inf") if total is None else trio.current_time() + total
        authorization = proxy.authorization if proxy is not None and forwarded else None
        fields = request_headers(request, origin, self._user_agent, authorization)
        while True:
            slot = await self._slot(host, origin)
            connection = self._pooled(host)
            reused = connection is not None
            try:
                if connection is None:
                    connection = await self._open_new(key)
                head = await connection.send_request(request, fields, deadline)
                if head.status == PROXY_AUTHENTICATION_REQUIRED and proxy is not None and forwarded:
                    raise _proxy_error(proxy, origin, str(head.status))
                return UpstreamResponse(connection, head, deadline, partial(self._release, host, slot))
            except BaseException as error:
                await self._release(host, slot, connection, reusable=False)
                # RFC 9112 9.3.1: the server may have closed an idle connection just then.
                stale = reused and isinstance(error, UpstreamError) and error.status != 504
                if not stale or connection is None or connection.response_started:
                    raise
                for other in host.idle:  # others of the same age are likely dead too
                    _drop(other)
                host.idle.clear()

    @asynccontextmanager
    async def stream(self, url: str) -> AsyncIterator[trio.abc.Stream]:
        """Open a connection for another protocol than HTTP, closed at the end.

        It is made as all others are, through the same proxy and with the same limits, and holds one of its
        host's slots.
        """
        key = origin, _ = self.route(url)
        host = self._host(key)
        slot = await self._slot(host, origin)
        connection = None
        try:
            connection = await self._open_new(key, tunnel=True)
            yield connection.stream
        finally:
            await self._release(host, slot, connection, reusable=False)

    def _host(self, key: PoolKey) -> _HostPool:
        host = self._hosts.get(key)
        if host is None:
            host = self._hosts[key] = _HostPool(self.limits)
        return host

    def route(self, url: str) -> PoolKey:
        """Return the origin of a URL and its proxy. Raises UpstreamError for an invalid URL."""
        try:
            origin = Origin.of(url)
        except ValueError as error:
            raise UpstreamError(f"The account's base URL is {error}.") from None
        return origin, self._proxies.proxy_for(origin)

    async def connect(self, url: str) -> trio.abc.Stream:
        """Return a new connection made like those of requests to a URL, for diagnostics. Raises as `send`
        does."""
        return (await self._open_new(self.route(url))).stream

    async def _slot(self, host: _HostPool, origin: Origin) -> object:
        """Acquire one of the host's slots. Raises UpstreamError if none becomes free in time."""
        slot = object()
        with suppress(trio.WouldBlock):
            host.slots.acquire_on_behalf_of_nowait(slot)
            return slot
        try:
            with trio.fail_after(self.limits.pool_timeout):
                await host.slots.acquire_on_behalf_of(slot)
        except trio.TooSlowError:
            limit = self.limits.max_connections
            message = f"All {limit} connections to {origin.host} are in use (max_upstream_connections)."
            raise UpstreamError(
                message, status=503, code="overloaded", retry=RetryHint.OTHER_ACCOUNT
            ) from None
        return slot

    def _pooled(self, host: _HostPool) -> UpstreamConnection | None:
        """Return the most recently used idle connection that is alive, or None."""
        now = trio.current_time()
        while host.idle and now - host.idle[0].idle_since >= self.limits.pool_idle:
            _drop(host.idle.popleft())
        while host.idle:
            connection = host.idle.pop()
            if not connection.is_stale:
                return connection
            _drop(connection)
        return None

    async def _open_new(self, key: PoolKey, *, tunnel: bool = False) -> UpstreamConnection:
        """Return a new connection; with `tunnel` to the origin itself, even if a proxy would forward
        requests."""
        origin, proxy = key
        with trio.move_on_after(self.limits.connect_timeout):
            if proxy is None or tunnel or not proxy.is_forward_proxy_for(origin):
                stream, prefix = await self._open(origin, proxy), b""
            else:
                stream, prefix = (
                    await self._open_proxied(origin, proxy),
                    f"http://{origin.host_header}".encode(),
                )
            self._created += 1
            return UpstreamConnection(stream, self.limits, origin.host, prefix)
        error = timeout_error(
            f"Cannot connect to {origin.host}", self.limits.connect_timeout, "upstream_connect_timeout"
        )
        error.retry = RetryHint.SOON
        raise error

    async def _open(self, origin: Origin, proxy: ProxyServer | None) -> trio.abc.Stream:
        if proxy is None:
            stream = await self._tcp(origin, f"Cannot connect to {origin.host}")
        else:
            stream = await self._tunnel(origin, proxy)
        return await self._start_tls(stream, origin) if origin.scheme == "https" else stream

    async def _tcp(self, origin: Origin, failure: str) -> trio.abc.Stream:
        with map_errors(failure, retry=RetryHint.SOON):
            return InterruptibleStream(await self._connect(origin.host, origin.port))

    async def _start_tls(self, stream: trio.abc.Stream, origin: Origin) -> trio.abc.Stream:
        if self._ssl_context is None:
            self._ssl_context = ssl.create_default_context()
        tls = trio.SSLStream(stream, self._ssl_context, server_hostname=origin.host, https_compatible=True)
        try:
            with map_errors(f"Cannot make a TLS connection to {origin.host}", retry=RetryHint.SOON):
                await tls.do_handshake()
        except BaseException:
            await trio.aclose_forcefully(stream)
            raise
        return tls

    async def _open_proxied(self, origin: Origin, proxy: ProxyServer) -> trio.abc.Stream:
        """Open a connection to the proxy itself."""
        stream = await self._tcp(proxy.origin, f"Cannot connect to the proxy {proxy.origin.host}")
        return await self._start_tls(stream, proxy.origin) if proxy.origin.scheme == "https" else stream

    async def _tunnel(self, origin: Origin, proxy: ProxyServer) -> trio.abc.Stream:
        """Open a connection to `origin` through the proxy."""
        stream = await self._open_proxied(origin, proxy)
        try:
            await (self._socks_handshake if proxy.is_socks else self._request_tunnel)(stream, origin, proxy)
        except BaseException:
            await trio.aclose_forcefully(stream)
            raise
        return stream

    async def _socks_handshake(self, stream: trio.abc.Stream, origin: Origin, proxy: ProxyServer) -> None:
        host = origin.host
        if not proxy.resolves_names:
            with map_errors(f"Cannot connect to {host}", retry=RetryHint.SOON):
                host = await _resolve(host, origin.port)
        with map_errors(f"The proxy {proxy.origin.host} failed", retry=RetryHint.SOON):
            try:
                await socks.connect(stream, host, origin.port, proxy.credentials)
            except socks.SOCKSError as error:
                raise _proxy_error(proxy, origin, str(error)) from None

    async def _request_tunnel(self, stream: trio.abc.Stream, origin: Origin, proxy: ProxyServer) -> None:
        fields = [("host", origin.authority), ("user-agent", self._user_agent)]
        if proxy.authorization is not None:
            fields.append(("proxy-authorization", proxy.authorization))
        http = BoundedConnection(h11.CLIENT, self.limits.max_head_bytes)
        with map_errors(f"The proxy {proxy.origin.host} failed", retry=RetryHint.SOON):
            head = http.send(h11.Request(method="CONNECT", target=origin.authority, headers=fields))
            await stream.send_all((head or b"") + (http.send(h11.EndOfMessage()) or b""))
            while (event := http.next_event()) is h11.NEED_DATA or isinstance(
                event, h11.InformationalResponse
            ):
                if event is h11.NEED_DATA:
                    http.receive_data(bytes(await stream.receive_some(16 * 1024)))
        if not isinstance(event, h11.Response) or not 200 <= event.status_code < 300:
            status = event.status_code if isinstance(event, h11.Response) else "no response"
            raise _proxy_error(proxy, origin, str(status))

    async def _release(
        self, host: _HostPool, slot: object, connection: UpstreamConnection | None, reusable: bool
    ) -> None:
        """Release the slot, and keep the connection if it is reusable."""
        host.slots.release_on_behalf_of(slot)
        if connection is None:
            return
        if reusable and self._hosts:
            connection.idle_since = trio.current_time()
            host.idle.append(connection)
        else:
            await connection.aclose()

    async def aclose(self) -> None:
        """Close the idle connections; those in use close when their responses do."""
        hosts, self._hosts = self._hosts, {}
        for host in hosts.values():
            for connection in host.idle:
                await connection.aclose()


def _proxy_error(proxy: ProxyServer, origin: Origin, reason: str) -> UpstreamError:
    return UpstreamError(f"The proxy {proxy.origin.host} refused to connect to {origin.host} ({reason}).")


async def _resolve(host: str, port: int) -> str:
    """Return an address of a host: IPv4 if it has one, which every proxy supports."""
    entries = await trio.socket.getaddrinfo(host, port, type=trio.socket.SOCK_STREAM)
    entries.sort(key=lambda entry: entry[0] != trio.socket.AF_INET)
    return str(entries[0][4][0])


def _drop(connection: UpstreamConnection) -> None:
    """Close a connection without awaiting: a socket's close does not block."""
    stream = getattr(connection.stream, "transport_stream", connection.stream)
    while not isinstance(stream, trio.SocketStream) and hasattr(stream, "transport_stream"):
        stream = stream.transport_stream
    if isinstance(stream, trio.SocketStream):
        stream.socket.close()
