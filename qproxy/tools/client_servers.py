"""MCP servers that clients name by their address, on hosts that the operator allows.

Such a server is connected for one request and disconnected with it. Its host must match one of the allowed
patterns, and its address must be public (`transport.public_hosts`) unless the operator allows private ones.
Everything else holds for it as for the operator's own servers: bounds of its messages, checked schemas, time
limits, `[[tool_rules]]`. The client's credentials go to it, and into no log.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import NoReturn
from urllib.parse import urlsplit

import trio

from qproxy.tools import mcp
from qproxy.tools.tool import NAME_PATTERN
from qproxy.transport import UpstreamTransport
from qproxy.wire.errors import RequestError
from qproxy.wire.server_tools import ServerToolRequest

MAX_SERVERS = 8
"""Servers of one request."""
FAILED_DEPENDENCY = 424
_PORTS = {"https": 443, "http": 80}


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientServers:
    """Connects to the servers that clients name."""

    hosts: Sequence[str]
    """Patterns of hosts, with the port if it is not the usual one; none allows no server."""
    allows_http: bool
    """Whether a server may be reached without TLS."""
    timeout: float
    """Seconds to connect and list the tools."""
    new_transport: Callable[[], UpstreamTransport]
    """Makes a transport that reaches only what is allowed."""

    async def connect(
        self, requests: Sequence[ServerToolRequest], taken: Sequence[str], nursery: trio.Nursery | None
    ) -> list[mcp.McpServer]:
        """Return the connected servers of a request, which run in its nursery.

        `taken` are the labels of other servers.  Raises RequestError for one that is not allowed or not
        available.
        """
        if len(requests) > MAX_SERVERS:
            _reject(requests[MAX_SERVERS], f"a request has at most {MAX_SERVERS} servers.")
        labels = list(taken)
        for request in requests:
            self._check(request, labels)
            labels.append(request.server or "")
        if requests and nursery is None:
            _reject(requests[0], "a background response cannot use a client's MCP server.")
        assert nursery is not None or not requests
        servers = [self._server(request) for request in requests]
        for server in servers:
            assert nursery is not None
            nursery.start_soon(server.run)
        with trio.move_on_after(self.timeout):
            for server in servers:
                await server.wait_ready()
        for request, server in zip(requests, servers, strict=True):
            if not server.tools:
                message = (
                    f"MCP server {server.label!r} was not available within {self.timeout:g} s "
                    f"(client_mcp_timeout): {server.state}"
                )
                raise RequestError(
                    message, status=FAILED_DEPENDENCY, param=request.path, code="mcp_server_unavailable"
                )
        return servers

    def _server(self, request: ServerToolRequest) -> mcp.McpServer:
        return mcp.McpServer(
            request.server or "",
            mcp.http_connection(request.url or "", request.headers, self.new_transport),
            isolation="elsewhere",
        )

    def _check(self, request: ServerToolRequest, labels: Sequence[str]) -> None:
        """Raise RequestError unless the server may be used."""
        if not self.hosts:
            _reject(request, "this server only connects to MCP servers that its operator declared.")
        parts = urlsplit(request.url or "")
        port, usual = parts.port, _PORTS[parts.scheme]
        host = parts.hostname or ""
        place = host if port in (None, usual) else f"{host}:{port}"
        if not any(fnmatchcase(place, pattern.lower()) for pattern in self.hosts):
            _reject(request, f"the operator does not allow the host {place[:100]!r} (client_mcp_hosts).")
        if parts.scheme == "http" and not self.allows_http:
            _reject(request, "expected an https URL.")
        label = request.server or ""
        if not NAME_PATTERN.match(label) or label in labels:
            message = "a label of its own, with letters, digits, _ and -, that begins with a letter."
            _reject(request, f"expected {message}", key="server_label")


def _reject(request: ServerToolRequest, message: str, key: str = "server_url") -> NoReturn:
    path = f"{request.path}.{key}"
    raise RequestError(f"Invalid value for '{path}': {message}", param=path, code="invalid_value")
