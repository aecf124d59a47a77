"""Sockets bound to an address, and the error for one that cannot be bound."""

from __future__ import annotations

import errno
import socket

ADVICE = {
    errno.EADDRINUSE: "stop the program that uses it, or set another port",
    errno.EACCES: "ports below 1024 require privileges; set another port",
    errno.EADDRNOTAVAIL: "no interface of this machine has this address; set another host",
}
UNKNOWN_HOST = "set host to an address or a name of this machine"


def bound_socket(host: str, port: int) -> socket.socket:
    """Return a TCP socket bound to an address. Raises OSError, which names the address."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        raise OSError(address_error(host, port, error)) from None
    return bound


def address_error(host: str, port: int, error: OSError) -> str:
    """Return the error for an address that cannot be bound."""
    reason = error.strerror or str(error)
    advice = UNKNOWN_HOST if isinstance(error, socket.gaierror) else ADVICE.get(error.errno or 0, "")
    return f"cannot listen on {host}, port {port}: {reason}{f' ({advice})' if advice else ''}."
