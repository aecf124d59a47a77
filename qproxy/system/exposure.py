"""A check whether an address is reachable from other machines, and the error if it must not be."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit


def is_loopback(name: str) -> bool:
    """Return whether a host name or address is a loopback one."""
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)  # a connection to [::] from an IPv4 client
    return (mapped or address).is_loopback


def host_name(authority: str) -> str:
    """Return the name or address of a Host header or authority without its port; "" only if it is empty."""
    name, colon, port = authority.rpartition(":")
    name = name if colon and name and port.isdecimal() else authority
    return name.strip("[]").lower().removesuffix(".") or authority


def origin_authority(origin: str) -> str:
    """Return the authority of an Origin header; "" if it has none (`null`) or is not a URL."""
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return ""


def exposed_without_keys_message(address: str) -> str:
    """Return the error for listening on a reachable address without API keys."""
    return (
        f"Refusing to listen on {address} without API keys: anyone could use your accounts. Create one with "
        "`qproxy keys create`, set api_keys, or set insecure_no_auth = true (--insecure-no-auth)."
    )
