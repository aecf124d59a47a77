"""The address of a client: the socket's peer, or the one that a trusted proxy names.

Any client can send an X-Forwarded-For or Forwarded header. So these are read only when the peer is one of the
setting `trusted_proxies`, and from the right: each proxy appends the address of its peer, so the first
address from the right that is no trusted proxy is the client's, and what is left of it was written by the
client.

A proxy that writes one of the two headers passes the other one on as a client wrote it. If both are present
and disagree, neither is believed, and the request counts as the proxy's own.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from functools import lru_cache
from typing import TypeAlias

IPAddress: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
IPNetwork: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network
UNIX = "unix"
"""The peer of a Unix socket, which has no address; also its name among `trusted_proxies`."""
MAX_HOPS = 32
MAX_ADDRESS = 64
"""Characters: an IPv6 address with a zone and a port is shorter."""
IPV6_PREFIX = 64
"""Bits of the network that one subscriber gets (RFC 6177): addresses that share them count as one."""


class TrustedProxies:
    """The proxies that are believed when they name a client."""

    def __init__(self, entries: Iterable[str]) -> None:
        """Raises ValueError for an entry that is neither an address, nor a network in CIDR, nor `unix`."""
        names = list(entries)
        self._unix = UNIX in names
        self._networks = tuple(
            ipaddress.ip_network(name.strip(), strict=False) for name in names if name != UNIX
        )

    def __repr__(self) -> str:
        return f"<TrustedProxies {len(self._networks)} networks{', unix' if self._unix else ''}>"

    def client_address(self, peer: str | None, headers: Iterable[tuple[bytes, bytes]]) -> str:
        """Return the address of a request's client; `peer` is the socket's, None for a Unix socket."""
        nearest = UNIX if peer is None else peer
        if not (self._unix or self._networks) or not self._trusts(nearest):
            return nearest
        chains: dict[bytes, list[bytes]] = {}
        for name, value in headers:
            if name.lower() in (b"x-forwarded-for", b"forwarded"):
                chains.setdefault(name.lower(), []).append(value)
        found = {self._first_untrusted(nearest, _hops(name, values)) for name, values in chains.items()}
        return found.pop() if len(found) == 1 else nearest

    def _first_untrusted(self, nearest: str, hops: Iterable[str]) -> str:
        """Return the first address that is no trusted proxy, starting from the nearest of `hops`."""
        for hop in hops:
            address = parse_address(hop)
            if address is None:  # "unknown", a name (RFC 7239 6.2, 6.3)
                break
            nearest = str(address)
            if not self._trusts(nearest):
                break
        return nearest

    def _trusts(self, text: str) -> bool:
        if text == UNIX:
            return self._unix
        address = parse_address(text)
        return address is not None and any(address in network for network in self._networks)


def _hops(name: bytes, values: Iterable[bytes]) -> list[str]:
    """Return the addresses of a header, the nearest first; at most `MAX_HOPS`."""
    elements = b",".join(values).decode("latin-1").rsplit(",", MAX_HOPS)[-MAX_HOPS:]
    if name == b"forwarded":
        elements = [_for_parameter(element) for element in elements]
    return elements[::-1]


def _for_parameter(element: str) -> str:
    """Return the `for` parameter of an element of a Forwarded header (RFC 7239 4)."""
    pairs = (pair.partition("=") for pair in element.split(";"))
    return next((value.strip().strip('"') for name, _, value in pairs if name.strip().lower() == "for"), "")


def parse_address(text: str) -> IPAddress | None:
    """Parse an address as proxies write it: alone, with a port, in brackets. Return None for anything
    else."""
    return _parse_cached(text.strip()) if len(text) <= MAX_ADDRESS else None


@lru_cache(maxsize=4096)
def _parse_cached(text: str) -> IPAddress | None:
    host = text.rpartition(":")[0] if text.count(":") == 1 else text
    if host.startswith("["):
        host = host[1:].partition("]")[0]
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


@lru_cache(maxsize=4096)
def subscriber_prefix(address: str) -> str:
    """Return what counts as one address: an IPv4 address, the /64 of an IPv6 address, or the text if it is
    neither."""
    ip = parse_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((ip, IPV6_PREFIX), strict=False))
    return address if ip is None else str(ip)
