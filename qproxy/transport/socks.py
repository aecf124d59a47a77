"""SOCKS 5, the client's side: a connection to a host via a proxy that does not inspect it.

`handshake` is pure: it yields the bytes to send and the number of bytes to receive next. Nothing beyond is
read.

RFC 1928; user name and password: RFC 1929.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Generator
from typing import TypeAlias

import trio

VERSION = 5
PASSWORD_VERSION = 1
NO_AUTHENTICATION, PASSWORD = 0, 2
CONNECT = 1
IPV4, NAME, IPV6 = 1, 3, 4
ADDRESS_SIZES = {IPV4: 4, IPV6: 16}
MAX_TEXT = 255
"""Bytes of a name, a user name or a password: their length is one byte."""
REPLIES = {
    1: "general failure",
    2: "not allowed by its rules",
    3: "network unreachable",
    4: "host unreachable",
    5: "connection refused",
    6: "time to live expired",
    7: "command not supported",
    8: "address type not supported",
}
NOT_SOCKS5 = "it is not a SOCKS 5 proxy"
Credentials: TypeAlias = tuple[str, str]
Handshake: TypeAlias = Generator[tuple[bytes, int], bytes, None]
"""Yields the bytes to send and the number to receive, is sent those, and returns when connected."""


class SOCKSError(Exception):
    """The proxy made no connection; the message is the reason."""


def handshake(host: str, port: int, credentials: Credentials | None) -> Handshake:
    """Request a connection to a name or an address. Raises SOCKSError if the proxy makes none."""
    methods = bytes([NO_AUTHENTICATION] if credentials is None else [NO_AUTHENTICATION, PASSWORD])
    version, method = yield bytes([VERSION, len(methods)]) + methods, 2
    if version != VERSION:
        raise SOCKSError(NOT_SOCKS5)
    if method == PASSWORD and credentials is not None:
        user, password = map(_length_prefixed, credentials)
        version, status = yield bytes([PASSWORD_VERSION]) + user + password, 2
        if status:
            raise SOCKSError("it rejects the user name or the password")
    elif method != NO_AUTHENTICATION:
        wanted = "a user name and a password" if credentials is None else "other credentials"
        raise SOCKSError(f"it requires {wanted}")
    request = bytes([VERSION, CONNECT, 0]) + _encode_address(host) + port.to_bytes(2, "big")
    version, reply, _, kind = yield request, 4
    if version != VERSION:
        raise SOCKSError(NOT_SOCKS5)
    if reply:
        raise SOCKSError(REPLIES.get(reply, f"reply {reply}"))
    size = ADDRESS_SIZES.get(kind)
    if kind == NAME:
        (size,) = yield b"", 1
    if size is None:
        raise SOCKSError(NOT_SOCKS5)
    yield b"", size + 2  # the address that the proxy connects from, unused


def _length_prefixed(text: str) -> bytes:
    """Return a text after its length."""
    data = text.encode()
    return bytes([len(data)]) + data


def _encode_address(host: str) -> bytes:
    """Return a destination: an address as such, anything else as a name for the proxy to resolve."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        name = host.encode("idna")
        if len(name) > MAX_TEXT:
            raise SOCKSError("the host name is too long for SOCKS 5") from None
        return bytes([NAME, len(name)]) + name
    return bytes([IPV4 if address.version == 4 else IPV6]) + address.packed


async def connect(stream: trio.abc.Stream, host: str, port: int, credentials: Credentials | None) -> None:
    """Turn a stream to a proxy into one to the host. Raises SOCKSError, and the stream's errors."""
    steps = handshake(host, port, credentials)
    data, size = next(steps)
    while True:
        if data:
            await stream.send_all(data)
        received = await _receive_exactly(stream, size)
        try:
            data, size = steps.send(received)
        except StopIteration:
            return


async def _receive_exactly(stream: trio.abc.Stream, size: int) -> bytes:
    received = b""
    while len(received) < size:
        data = await stream.receive_some(size - len(received))
        if not data:
            raise SOCKSError("it closed the connection")
        received += data
    return received
