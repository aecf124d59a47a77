"""Whether an address can be reached by other machines, and what is said where it would be served without keys."""

from __future__ import annotations

import ipaddress


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


def without_keys(address: str) -> str:
    """What is wrong with serving an address that other machines reach without keys, and what to do."""
    return (
        f"Serving on {address} without keys would let everyone use your accounts. Make one with "
        "`qproxy keys create`, or set api_keys, or say insecure_no_auth = true (--insecure-no-auth)."
    )
