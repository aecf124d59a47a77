"""The limits of the HTTP server, which the app sets on the server that runs it."""

from __future__ import annotations

from dataclasses import dataclass

from qproxy.http_server.server import patch_hypercorn
from qproxy.http_server.shutdown import ERROR_DELIVERY_SECONDS, current_shutdown
from qproxy.http_server.tcp_server import TCPServer
from qproxy.http_server.worker import Worker

SHUTDOWN_SECONDS = 30.0
"""Seconds for the app's own shutdown, beside its wait for responses in the background."""
MAX_STREAMS = 250
"""Concurrent streams of one HTTP/2 connection."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpServerLimits:
    """The limits of connections: seconds (`math.inf` for no limit), bytes and counts."""

    graceful_timeout: float
    write_timeout: float
    keep_alive_timeout: float
    max_connections: int
    max_connection_age: float
    max_header_bytes: int
    linger_bytes: int
    linger_timeout: float
    ping_interval: float | None
    """Seconds between pings to a WebSocket client; None sends none."""
    max_message_bytes: int

    def apply(self) -> None:
        """Set the limits of the server that runs the current app, if it supports any."""
        shutdown = current_shutdown.get()
        if shutdown is None:
            return
        shutdown.timeout = self.graceful_timeout + ERROR_DELIVERY_SECONDS
        if not isinstance(shutdown, Worker):
            return
        patch_hypercorn()
        TCPServer.write_timeout = self.write_timeout
        TCPServer.max_connections = self.max_connections
        TCPServer.max_age = self.max_connection_age
        TCPServer.max_linger_bytes, TCPServer.linger_seconds = self.linger_bytes, self.linger_timeout
        shutdown.configure(
            graceful_timeout=shutdown.timeout,
            shutdown_timeout=shutdown.timeout + SHUTDOWN_SECONDS,
            keep_alive_timeout=self.keep_alive_timeout,
            h11_max_incomplete_size=self.max_header_bytes,
            h2_max_header_list_size=self.max_header_bytes,
            h2_max_concurrent_streams=MAX_STREAMS,
            websocket_ping_interval=self.ping_interval,
            websocket_max_message_size=self.max_message_bytes,
            include_server_header=False,
        )
