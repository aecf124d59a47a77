"""The outbound proxy of a URL, by settings or by the usual environment variables.

`NO_PROXY` holds host names (with their subdomains), `.suffix`, `*`, IP addresses, networks (10.0.0.0/8), each
perhaps with a port.
"""

from __future__ import annotations

import base64
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from urllib.parse import SplitResult, unquote, urlsplit

from qproxy.transport.socks import MAX_TEXT, Credentials

SOCKS = ("socks5", "socks5h")
"""Schemes; with the `h` the proxy resolves names."""
SOCKS_PORT = 1080
"""RFC 1928 3."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Scheme, host and port of a connection."""

    scheme: str
    host: str
    port: int

    @classmethod
    @lru_cache(maxsize=256)  # looked up for each request
    def of(cls, url: str) -> Origin:
        """Return the origin of an absolute http or https URL. Raises ValueError for any other."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("not an absolute http or https URL")
        return cls(parts.scheme, parts.hostname, parts.port or (443 if parts.scheme == "https" else 80))

    @property
    def authority(self) -> str:
        """Return `host:port`, an IPv6 address in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def host_header(self) -> str:
        """Return the value of the Host header."""
        default = 443 if self.scheme == "https" else 80
        return self.authority.removesuffix(f":{self.port}") if self.port == default else self.authority


@dataclass(frozen=True, slots=True)
class ProxyServer:
    """One proxy and the credentials for it."""

    origin: Origin
    credentials: Credentials | None = field(default=None, repr=False)
    """User name and password, if any."""

    @classmethod
    def parse(cls, url: str, source: str = "proxy") -> ProxyServer:
        """Parse a proxy's URL. Raises ValueError, which names `source` and no part of the URL, if it is
        invalid."""
        try:
            return cls._from_url(urlsplit(url if "://" in url else f"http://{url}"))
        except ValueError:
            raise ValueError(
                f"{source}: expected http[s]://[user:password@]host:port or "
                "socks5[h]://[user:password@]host:port."
            ) from None

    @classmethod
    def _from_url(cls, url: SplitResult) -> ProxyServer:
        credentials = None
        if url.username is not None:
            credentials = unquote(url.username), unquote(url.password or "")
        if url.scheme not in SOCKS:
            return cls(Origin.of(f"{url.scheme}://{url.netloc.rpartition('@')[2]}"), credentials)
        if not url.hostname or any(len(text.encode()) > MAX_TEXT for text in credentials or ()):
            raise ValueError("not a SOCKS proxy")
        return cls(Origin(url.scheme, url.hostname, url.port or SOCKS_PORT), credentials)

    @property
    def authorization(self) -> str | None:
        """Return the credentials as an HTTP header value (RFC 7617)."""
        if self.credentials is None:
            return None
        return "Basic " + base64.b64encode(":".join(self.credentials).encode()).decode()

    @property
    def is_socks(self) -> bool:
        return self.origin.scheme in SOCKS

    @property
    def resolves_names(self) -> bool:
        """Return whether the proxy resolves names; `socks5` leaves that to its client, as in curl."""
        return self.origin.scheme != "socks5"

    def is_forward_proxy_for(self, target: Origin) -> bool:
        """Return whether the proxy forwards requests to `target` instead of connecting (RFC 9112 3.2.2)."""
        return target.scheme == "http" and not self.is_socks


@dataclass(frozen=True, slots=True)
class ProxySettings:
    """Proxies by the target's scheme, and the hosts that need none."""

    http: ProxyServer | None = None
    https: ProxyServer | None = None
    exempt: tuple[str, ...] = ()
    """Hosts that are reached without a proxy."""

    @classmethod
    def for_all(cls, url: str, no_proxy: str) -> ProxySettings:
        """Return one proxy for all targets except `no_proxy` (comma-separated). Raises ValueError if it is
        invalid."""
        server = ProxyServer.parse(url)
        return cls(server, server, _hosts(no_proxy))

    @classmethod
    def from_environment(cls, environ: Mapping[str, str], no_proxy: str) -> ProxySettings:
        """Read HTTPS_PROXY, HTTP_PROXY (lower case only, as a request header could set
        the other), ALL_PROXY, NO_PROXY.

        `no_proxy` extends the last. Raises ValueError naming a variable that is invalid.
        """

        def read(*names: str) -> ProxyServer | None:
            name = next((name for name in (*names, "all_proxy", "ALL_PROXY") if environ.get(name)), None)
            return None if name is None else ProxyServer.parse(environ[name], name)

        exempt = environ.get("no_proxy") or environ.get("NO_PROXY") or ""
        return cls(read("http_proxy"), read("https_proxy", "HTTPS_PROXY"), _hosts(f"{exempt},{no_proxy}"))

    def proxy_for(self, target: Origin) -> ProxyServer | None:
        """Return the proxy for `target`; None for a direct connection."""
        server = self.https if target.scheme == "https" else self.http
        if server is None or any(_matches(pattern, target) for pattern in self.exempt):
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
