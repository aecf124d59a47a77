"""The outbound proxy: which one an URL goes through, by settings or by the customary variables.

`NO_PROXY` holds host names (with their subdomains), `.suffix`, `*`, IP addresses, networks (10.0.0.0/8), each
perhaps with a port.
"""

from __future__ import annotations

import base64
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from urllib.parse import unquote, urlsplit


@dataclass(frozen=True, slots=True)
class Origin:
    """Scheme, host and port: what a connection is made to."""

    scheme: str
    host: str
    port: int

    @classmethod
    @lru_cache(maxsize=256)  # each request asks for its account's
    def of(cls, url: str) -> Origin:
        """The origin of an absolute http or https URL; ValueError when it is none."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("not an absolute http or https URL")
        return cls(parts.scheme, parts.hostname, parts.port or (443 if parts.scheme == "https" else 80))

    @property
    def authority(self) -> str:
        """`host:port`, an IPv6 address in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def host_field(self) -> str:
        """The Host header field's value."""
        default = 443 if self.scheme == "https" else 80
        return self.authority.removesuffix(f":{self.port}") if self.port == default else self.authority


@dataclass(frozen=True, slots=True)
class ProxyServer:
    """One proxy and the credentials for it."""

    origin: Origin
    authorization: str | None = field(default=None, repr=False)

    @classmethod
    def of(cls, url: str) -> ProxyServer:
        """A proxy from `http[s]://[user:password@]host:port`; ValueError when it is none."""
        parts = urlsplit(url if "://" in url else f"http://{url}")
        origin = Origin.of(f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}")
        if parts.username is None:
            return cls(origin)
        credentials = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        return cls(origin, "Basic " + base64.b64encode(credentials.encode()).decode())


@dataclass(frozen=True, slots=True)
class Proxy:
    """The proxies by scheme of the target, and the hosts that need none."""

    http: ProxyServer | None = None
    https: ProxyServer | None = None
    no_proxy: tuple[str, ...] = ()

    @classmethod
    def everywhere(cls, url: str, no_proxy: str = "") -> Proxy:
        """One proxy for all targets but those in `no_proxy` (comma-separated)."""
        server = ProxyServer.of(url)
        return cls(server, server, _hosts(no_proxy))

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Proxy:
        """HTTPS_PROXY, HTTP_PROXY (lower case only, as a request header could set the other), ALL_PROXY, NO_PROXY."""

        def read(*names: str) -> str:
            return next((environ[name] for name in names if environ.get(name)), "")

        everything = read("all_proxy", "ALL_PROXY")
        http = read("http_proxy") or everything
        https = read("https_proxy", "HTTPS_PROXY") or everything
        return cls(
            ProxyServer.of(http) if http else None,
            ProxyServer.of(https) if https else None,
            _hosts(read("no_proxy", "NO_PROXY")),
        )

    def server_for(self, target: Origin) -> ProxyServer | None:
        """The proxy to reach `target` through; None for a direct connection."""
        server = self.https if target.scheme == "https" else self.http
        if server is None or any(_matches(pattern, target) for pattern in self.no_proxy):
            return None
        return server


def _hosts(text: str) -> tuple[str, ...]:
    return tuple(entry.strip().lower() for entry in text.split(",") if entry.strip())


def _matches(pattern: str, target: Origin) -> bool:
    if pattern == "*":
        return True
    host, colon, port = pattern.rpartition(":")
    if colon and port.isdecimal() and not (":" in host and not host.startswith("[")):
        if int(port) != target.port:
            return False
        pattern = host
    pattern = pattern.strip("[]")
    try:
        return ipaddress.ip_address(target.host) in ipaddress.ip_network(pattern, strict=False)
    except ValueError:
        suffix = pattern.removeprefix("*").removeprefix(".")
        return target.host.lower() == suffix or target.host.lower().endswith("." + suffix)
