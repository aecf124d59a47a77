"""Groups of settings as the records that the parts take.

A setting of 0 that means "no limit" becomes None or inf. A record belongs to the part that it limits; here
the names of the settings meet those of its fields.
"""

from __future__ import annotations

import math

from qproxy.accounts import Account
from qproxy.accounts.pool import PoolSettings
from qproxy.config import Config
from qproxy.http_server import HttpServerLimits
from qproxy.relay.realtime import SessionLimits
from qproxy.server.request_body import RequestLimits
from qproxy.server.response_socket import ResponseSocketLimits
from qproxy.transport import TransportLimits
from qproxy.wire.models import ModelCatalog


def http_server_limits(config: Config) -> HttpServerLimits:
    """Return the limits of clients' connections."""
    return HttpServerLimits(
        graceful_timeout=config.graceful_timeout,
        write_timeout=config.client_write_timeout,
        keep_alive_timeout=config.client_idle_timeout,
        max_connections=config.max_client_connections,
        max_connection_age=config.max_client_connection_age or math.inf,
        max_header_bytes=config.max_header_bytes,
        linger_bytes=config.linger_bytes,
        linger_timeout=config.linger_timeout,
        ping_interval=config.realtime_ping_interval or None,
        max_message_bytes=config.realtime_max_message_bytes,
    )


def pool_settings(config: Config, accounts: tuple[Account, ...], catalog: ModelCatalog) -> PoolSettings:
    """Return the accounts of a pool with the limits of its queue."""
    return PoolSettings(
        accounts=accounts,
        catalog=catalog,
        queue_timeout=config.queue_timeout,
        max_queue_size=config.max_queue_size,
    )


def request_limits(config: Config) -> RequestLimits:
    """Return the limits of one request."""
    return RequestLimits(
        max_body_bytes=config.max_body_bytes,
        max_upload_bytes=config.max_upload_bytes,
        max_json_depth=config.max_json_depth,
        max_messages=config.max_messages,
        client_body_timeout=config.client_body_timeout,
        client_min_body_rate=config.client_min_body_rate,
        client_request_timeout=config.client_request_timeout or math.inf,
        keep_alive_interval=config.keep_alive_interval or math.inf,
        max_background_responses=config.max_background_responses,
    )


def session_limits(config: Config) -> SessionLimits:
    """Return the limits of one realtime session."""
    return SessionLimits(
        timeout=config.realtime_timeout or math.inf,
        idle_timeout=config.realtime_idle_timeout or math.inf,
        ping_interval=config.realtime_ping_interval or math.inf,
        max_message_bytes=config.realtime_max_message_bytes,
    )


def response_socket_limits(config: Config) -> ResponseSocketLimits:
    """Return the limits of one WebSocket of the Responses API."""
    return ResponseSocketLimits(
        timeout=config.responses_socket_timeout or math.inf,
        max_cached_bytes=config.responses_socket_max_bytes,
    )


def transport_limits(config: Config) -> TransportLimits:
    """Return the limits of connections to upstreams."""
    return TransportLimits(
        connect_timeout=config.upstream_connect_timeout,
        write_timeout=config.upstream_write_timeout,
        first_byte_timeout=config.upstream_first_byte_timeout or None,
        idle_timeout=config.upstream_read_timeout or None,
        total_timeout=config.upstream_total_timeout or None,
        pool_timeout=config.pool_timeout,
        pool_idle=config.pool_idle_timeout,
        max_connections=config.max_upstream_connections,
    )
