"""Whether an address can be reached by other machines, and what is said where it would be served without keys."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit


def is_loopback(name: str) -> bool:
    """Whether a host's name or address is this machine's own."""
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)  # a connection to [::] from an IPv4 client
    return (mapped or address).is_loopback


def host_name(authority: str) -> str:
    """The name or address in a Host field or an authority, without its port; "" only where there is nothing at all."""
    name, colon, port = authority.rpartition(":")
    name = name if colon and name and port.isdecimal() else authority
    return name.strip("[]").lower().removesuffix(".") or authority


def origin_authority(origin: str) -> str:
    """The authority in an Origin field; "" when it has none (`null`), or is no URL."""
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return ""


def exposed_without_keys_message(address: str) -> str:
    """What is wrong with serving an address that other machines reach without keys, and what to do."""
    return (
        f"Serving on {address} without keys would let everyone use your accounts. Make one with "
        "`qproxy keys create`, or set api_keys, or say insecure_no_auth = true (--insecure-no-auth)."
    )
