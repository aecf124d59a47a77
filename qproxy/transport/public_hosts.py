"""Connections to hosts that a stranger names: to addresses of the internet alone.

A name is resolved once, and the connection is made to the address that was checked, so that a second answer
of the name's server cannot lead elsewhere. Loopback, private, link-local (cloud metadata) and other special
addresses are refused, also within IPv6 addresses that stand for IPv4 ones (RFC 4291 2.5.5.2, 3056, 4380,
6052).
"""

from __future__ import annotations

import ipaddress
import socket
from contextlib import suppress

import trio

from qproxy.transport.pool import ConnectFunction

NAT64 = ipaddress.ip_network("64:ff9b::/96")
IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


def is_public(address: str) -> bool:
    """Return whether an IP address is one of the internet."""
    try:
        return _is_public(ipaddress.ip_address(address.partition("%")[0]))
    except ValueError:
        return False


def _is_public(address: IPAddress) -> bool:
    if isinstance(address, ipaddress.IPv6Address):
        teredo = address.teredo
        embedded = address.ipv4_mapped or address.sixtofour or (teredo and teredo[1])
        if embedded is None and address in NAT64:
            embedded = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if embedded is not None:
            return _is_public(embedded)
    return address.is_global and not address.is_multicast


async def connect_public(
    host: str, port: int, connect: ConnectFunction = trio.open_tcp_stream
) -> trio.abc.Stream:
    """Connect to a host whose addresses are all public.  Raises OSError for any other."""
    entries = await trio.socket.getaddrinfo(host, port, type=trio.socket.SOCK_STREAM)
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in entries))
    if not addresses or not all(map(is_public, addresses)):
        reason = "the host has an address that is not public (client_mcp_private)"
        raise socket.gaierror(socket.EAI_FAIL, reason)  # an error of its name
    for address in addresses[:-1]:
        with suppress(OSError):
            return await connect(address, port)
    return await connect(addresses[-1], port)
