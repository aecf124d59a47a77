"""The addresses and host names that a server without API keys serves, and the requests from its own
machine.

A server without keys serves loopback only (`insecure_no_auth` lifts that), however it was started. There, a
page whose name was made to resolve to this machine (DNS rebinding) is recognized by its Host header, which
must name this machine.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from qproxy.system.exposure import exposed_without_keys_message, host_name, is_loopback, origin_authority
from qproxy.wire.errors import RequestError

ReadableHeaders: TypeAlias = Any
"""The headers of a request: `get(name, default)` with case-insensitive names."""
FORWARDED_HEADERS = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip", "via")
"""Headers that a proxy adds to a request of another client."""
log = logging.getLogger("qproxy.server")


@dataclass(frozen=True, slots=True, kw_only=True)
class HostPolicy:
    """Checks the addresses and host names of requests that carry no key."""

    allowed_hosts: tuple[str, ...]
    """Further host names for requests to loopback; `*` allows any."""
    insecure_no_auth: bool
    """Serve addresses that other machines reach, without keys."""
    _warned: set[str] = field(default_factory=set, init=False, repr=False, compare=False)
    """Addresses whose rejection has been logged."""

    def check(self, headers: ReadableHeaders, scope: Mapping[str, Any]) -> None:
        """Raise RequestError unless the connection was made to this machine's own address, by one of its
        names.

        A connection without an address (a Unix socket, a call within the process) is local, too.
        """
        server = scope.get("server")
        if server is None:
            return
        if not is_loopback(str(server[0])):
            if not self.insecure_no_auth:
                raise self._keys_required(str(server[0]))
            return
        name = host_name(headers.get("host", ""))
        if not name or is_loopback(name) or name in self.allowed_hosts or "*" in self.allowed_hosts:
            return
        raise RequestError(
            f"Host {name[:200]!r} is not allowed: a server on localhost without API keys only accepts "
            "localhost. Add it to allowed_hosts.",
            status=403,
            type="permission_error",
            code="host_not_allowed",
        )

    def _keys_required(self, address: str) -> RequestError:
        message = exposed_without_keys_message(address)
        if address not in self._warned:
            self._warned.add(address)
            log.warning("rejected a request: %s", message)
        return RequestError(message, status=403, type="permission_error", code="keys_required")


def require_local(headers: ReadableHeaders, scope: Mapping[str, Any]) -> None:
    """Raise RequestError unless the request comes directly from the server's own machine, not through a proxy
    on it."""
    server, peer = scope.get("server") or ("", 0), scope.get("client") or ("", 0)
    origin, name = headers.get("origin", ""), host_name(headers.get("host", ""))
    local = is_loopback(str(server[0])) and is_loopback(str(peer[0])) and (not name or is_loopback(name))
    forwarded = any(headers.get(field) for field in FORWARDED_HEADERS)
    if not local or forwarded or (origin and not is_loopback(host_name(origin_authority(origin)))):
        raise RequestError(
            "No admin_key is set; this route is only available from localhost.",
            status=403,
            type="permission_error",
            code="admin_key_required",
        )
