"""Connections to upstreams, from a `Config`: their limits, proxy and certificates."""

from __future__ import annotations

import ssl
from dataclasses import replace

import trio

from qproxy.bootstrap.limits import transport_limits
from qproxy.config import Config, proxy_environment
from qproxy.config.accounts import ConfigError
from qproxy.transport import ConnectFunction, ProxySettings, TransportLimits, UpstreamTransport

SETTINGS = (
    "upstream_connect_timeout", "upstream_write_timeout", "upstream_first_byte_timeout",
    "upstream_read_timeout", "upstream_total_timeout", "pool_timeout",
    "pool_idle_timeout", "max_upstream_connections", "proxy", "no_proxy", "ca_bundle",
)  # fmt: skip
"""The settings of a transport: a reload builds a new one if any of them changed."""


def build_transport(
    config: Config,
    connect: ConnectFunction = trio.open_tcp_stream,
    *,
    keep_connections: bool = True,
    limits: TransportLimits | None = None,
) -> UpstreamTransport:
    """Return a transport with the limits, proxy and certificates of the settings.

    `connect(host, port)` opens the streams. Without `keep_connections` every request has a connection of its
    own; `limits` are those of the settings by default.
    """
    limits = limits or transport_limits(config)
    if not keep_connections:
        limits = replace(limits, pool_idle=0.0)
    try:
        if config.proxy:
            proxy = ProxySettings.for_all(config.proxy, config.no_proxy)
        else:
            proxy = ProxySettings.from_environment(proxy_environment(), config.no_proxy)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    return UpstreamTransport(limits, proxies=proxy, ssl_context=ssl_context(config), connect=connect)


def ssl_context(config: Config) -> ssl.SSLContext | None:
    """Return the context with the trusted certificates of the settings, None for the system's."""
    if config.ca_bundle is None:
        return None
    try:
        return ssl.create_default_context(cafile=config.ca_bundle)
    except OSError as error:
        reason = "no certificate in PEM form" if isinstance(error, ssl.SSLError) else error.strerror
        raise ConfigError(f"ca_bundle: cannot load {config.ca_bundle} ({reason}).") from None
