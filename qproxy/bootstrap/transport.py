"""The way out, as the settings describe it: limits, proxy and certificates of every connection to an upstream."""

from __future__ import annotations

import ssl

import trio

from qproxy.config import Config, proxy_environment
from qproxy.config.accounts import ConfigError
from qproxy.transport import ConnectFunction, ProxySettings, TransportLimits, UpstreamTransport

SETTINGS = (
    "connect_timeout", "write_timeout", "first_byte_timeout", "idle_timeout", "total_timeout", "pool_timeout",
    "pool_idle", "max_connections", "proxy", "no_proxy", "ca_bundle",
)  # fmt: skip


def build_transport(
    config: Config, connect: ConnectFunction | None = None, *, pool_idle: float | None = None
) -> UpstreamTransport:
    """A transport with the settings' limits, proxy and certificates; `pool_idle` overrides the setting.

    `connect(host, port)` gives the streams, for programs with a network of their own.
    """
    limits = TransportLimits(
        connect_timeout=config.connect_timeout,
        write_timeout=config.write_timeout,
        first_byte_timeout=config.first_byte_timeout or None,
        idle_timeout=config.idle_timeout or None,
        total_timeout=config.total_timeout or None,
        pool_timeout=config.pool_timeout,
        pool_idle=config.pool_idle if pool_idle is None else pool_idle,
        max_connections=config.max_connections,
    )
    try:
        if config.proxy:
            proxy = ProxySettings.for_all(config.proxy, config.no_proxy)
        else:
            proxy = ProxySettings.from_environment(proxy_environment(), config.no_proxy)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    context = None
    if config.ca_bundle is not None:
        try:
            context = ssl.create_default_context(cafile=config.ca_bundle)
        except OSError as error:
            raise ConfigError(f"ca_bundle: {config.ca_bundle} cannot be used ({error}).") from None
    return UpstreamTransport(
        limits, proxy=proxy, ssl_context=context, connect=connect or trio.open_tcp_stream
    )
