"""Proxies for tests: SOCKS 5 and HTTP, over any streams."""

import ipaddress
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field

import h11
import trio


async def pump(source, sink):
    """Copy data until either end closes."""
    try:
        while data := await source.receive_some(65536):
            await sink.send_all(data)
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass
    await trio.aclose_forcefully(sink)


async def join(one, other):
    """Join two streams into one connection, until it ends."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pump, one, other)
        await pump(other, one)


@dataclass
class SOCKSProxy:
    """A server of RFC 1928; `connect(host, port)` opens its outgoing connections."""

    connect: Callable[[str, int], Awaitable[trio.abc.Stream]]
    credentials: tuple[str, str] | None = None
    reply: int = 0
    bound: bytes = b"\x01\x00\x00\x00\x00\x00\x00"
    """The type, address and port that the reply has as the connection's source."""
    destinations: list = field(default_factory=list)
    """(type of address, host, port) of each request."""
    shown: list = field(default_factory=list)
    """The received user names and passwords."""

    async def handle(self, stream):
        with suppress(trio.BrokenResourceError):
            await self._handle(stream)
        await trio.aclose_forcefully(stream)

    async def _handle(self, stream):
        async def read(size):
            data = b""
            while len(data) < size:
                data += await stream.receive_some(size - len(data)) or self._raise_closed()
            return data

        version, count = await read(2)
        methods = await read(count)
        method = 0 if self.credentials is None else 2 if 2 in methods else 0xFF
        assert version == 5
        await stream.send_all(bytes([5, method]))
        if method == 0xFF or (method == 2 and not await self._authenticate(stream, read)):
            return
        version, command, reserved, kind = await read(4)
        assert (version, command, reserved) == (5, 1, 0)
        size = {1: 4, 4: 16}.get(kind) or (await read(1))[0]
        address, port = await read(size), int.from_bytes(await read(2), "big")
        host = address.decode() if kind == 3 else str(ipaddress.ip_address(address))
        self.destinations.append((kind, host, port))
        answer = bytes([5, self.reply, 0]) + self.bound
        if self.reply:
            await stream.send_all(answer)
            return
        target = await self.connect(host, port)
        for byte in answer:  # one by one: a partial reply must not count as whole
            await stream.send_all(bytes([byte]))
        await join(stream, target)

    async def _authenticate(self, stream, read):
        assert (await read(1)) == b"\x01"
        shown = tuple([(await read((await read(1))[0])).decode() for _ in range(2)])
        self.shown.append(shown)
        await stream.send_all(bytes([1, shown != self.credentials]))
        return shown == self.credentials

    @staticmethod
    def _raise_closed():
        raise trio.BrokenResourceError


@dataclass
class HTTPProxy:
    """A proxy of RFC 9110: forwards requests in absolute form, and opens tunnels for CONNECT."""

    connect: Callable[[str, int], Awaitable[trio.abc.Stream]]
    authorization: bytes | None = None
    """The required proxy-authorization."""
    seen: list = field(default_factory=list)
    """(method, target, headers) of each request."""

    async def handle(self, stream):
        while await self._handle(stream):
            pass

    async def _handle(self, stream):
        """Handle one request; return whether another one may follow."""
        http, body, request = h11.Connection(h11.SERVER), b"", None
        while not isinstance(event := http.next_event(), h11.EndOfMessage):
            if event is h11.NEED_DATA:
                http.receive_data(bytes(await stream.receive_some(65536)))
            elif isinstance(event, h11.ConnectionClosed):
                return False
            elif isinstance(event, h11.Request):
                request = event
            elif isinstance(event, h11.Data):
                body += event.data
        assert request is not None
        fields = dict(request.headers)
        self.seen.append((request.method.decode(), request.target.decode(), fields))
        if fields.get(b"proxy-authorization") != self.authorization:
            await stream.send_all(b"HTTP/1.1 407 Who\r\ncontent-length: 0\r\n\r\n")
        elif request.method == b"CONNECT":
            host, _, port = request.target.decode().rpartition(":")
            target = await self.connect(host, int(port))
            await stream.send_all(b"HTTP/1.1 200 Connected\r\n\r\n")
            await join(stream, target)
            return False
        else:
            await self._forward(stream, request, body)
        return True

    async def _forward(self, stream, request, body):
        """Fetch an absolute http URL and forward the response."""
        rest = request.target.decode().removeprefix("http://")
        authority, _, path = rest.partition("/")
        host, _, port = authority.partition(":")
        target = await self.connect(host, int(port or 80))
        fields = [item for item in request.headers if item[0] != b"proxy-authorization"]
        http = h11.Connection(h11.CLIENT)
        sent = http.send(h11.Request(method=request.method, target=f"/{path}", headers=fields))
        sent += http.send(h11.Data(data=body)) if body else b""
        await target.send_all(sent + (http.send(h11.EndOfMessage()) or b""))
        while not isinstance(event := http.next_event(), h11.EndOfMessage):
            if event is h11.NEED_DATA:
                data = bytes(await target.receive_some(65536))
                http.receive_data(data)
                await stream.send_all(data)
        await target.aclose()


class Names(trio.abc.HostnameResolver):
    """A resolver that knows a few names."""

    def __init__(self, **addresses):
        self.addresses = addresses

    async def getaddrinfo(self, host, port, family=0, type=0, proto=0, flags=0):
        found = self.addresses.get(host.decode() if isinstance(host, bytes) else host)
        if found is None:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [
            (socket.AF_INET6 if ":" in address else socket.AF_INET, type, 6, "", (address, port))
            for address in found
        ]

    async def getnameinfo(self, sockaddr, flags):
        raise NotImplementedError
