"""Checks of the route to a server: DNS, proxy, connection, certificate and clock.

The transport opens the connection as for a request, with the same proxy, CA certificates and timeouts.
"""

from __future__ import annotations

import ipaddress
import ssl
from email.utils import parsedate_to_datetime
from typing import Any

import trio

from qproxy.diagnostics.report import Finding, last_failed
from qproxy.transport import UpstreamTransport
from qproxy.wire.errors import UpstreamError

DAY = 86400.0
EXPIRES_SOON_DAYS = 14
DNS_SECONDS = 10.0
MAX_SKEW = 60.0


async def check_route(url: str, transport: UpstreamTransport, area: str, wall_clock: float) -> list[Finding]:
    """Check the route to a URL; if it fails, the last finding has failed."""
    try:
        origin, proxy = transport.route(url)
    except UpstreamError as error:
        return [Finding(area, "address", "failed", error.message, "use the form http(s)://host[:port]/path")]
    found = []
    if proxy is not None:
        found.append(Finding(area, "proxy", "ok", f"via {proxy.origin.authority}"))
    if (proxy is None or not proxy.resolves_names) and not _is_address(origin.host):
        found.append(await _name(origin.host, origin.port, area))
        if last_failed(found):
            return found
    try:
        stream = await transport.connect(url)
    except UpstreamError as error:
        found.append(
            Finding(area, "connection", "failed", error.message, _advice(error, url, proxy is not None))
        )
        return found
    reached = proxy.origin if proxy is not None and proxy.is_forward_proxy_for(origin) else origin
    found.append(Finding(area, "connection", "ok", f"connected to {reached.authority}"))
    if isinstance(stream, trio.SSLStream):
        found.append(check_certificate(stream.getpeercert(), str(stream.version()), area, wall_clock))
    await trio.aclose_forcefully(stream)
    return found


async def _name(host: str, port: int, area: str) -> Finding:
    advice = "check the name, /etc/resolv.conf and the network"
    try:
        with trio.fail_after(DNS_SECONDS):
            entries = await trio.socket.getaddrinfo(host, port, type=trio.socket.SOCK_STREAM)
    except trio.TooSlowError:
        text = f"DNS lookup of {host} timed out after {DNS_SECONDS:g} s"
        return Finding(area, "DNS", "failed", text, advice)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        return Finding(area, "DNS", "failed", f"{host}: {reason}", advice)
    addresses = sorted({str(entry[4][0]) for entry in entries})
    more = f" and {len(addresses) - 3} more" if len(addresses) > 3 else ""
    return Finding(area, "DNS", "ok", f"{host} → {', '.join(addresses[:3])}{more}")


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _advice(error: UpstreamError, url: str, proxied: bool) -> str:
    text = error.message.lower()
    if "certificate" in text:
        return (
            "for a private CA, set ca_bundle; if the certificate is expired or not yet valid, check the clock"
        )
    if "tls" in text:
        return "check that the port uses TLS and that nothing intercepts the connection"
    if proxied:
        return "check the setting proxy, or the variables HTTPS_PROXY, ALL_PROXY and NO_PROXY"
    host = url.partition("://")[2].partition("/")[0]
    return (
        f"check that the server at {host} is running, and firewalls; behind a proxy, set proxy or HTTPS_PROXY"
    )


def check_certificate(peer: dict[str, Any], version: str, area: str, wall_clock: float) -> Finding:
    """Check how long the server's certificate is valid; the handshake has verified it."""
    days = int((ssl.cert_time_to_seconds(peer["notAfter"]) - wall_clock) // DAY)
    text = f"{version}, the certificate is valid until {peer['notAfter']} ({days} days)"
    if days < EXPIRES_SOON_DAYS:
        return Finding(area, "TLS", "warning", text, "the certificate expires soon; renew it")
    return Finding(area, "TLS", "ok", text)


def check_clock(date: str, area: str, wall_clock: float) -> Finding:
    """Compare the local clock with the server's Date header."""
    try:
        server_time = parsedate_to_datetime(date).timestamp()
    except (ValueError, OverflowError):
        return Finding(area, "clock", "skipped", "no Date header")
    skew = wall_clock - server_time
    if abs(skew) > MAX_SKEW:
        text = f"the local clock is {abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} the server's"
        return Finding(
            area,
            "clock",
            "warning",
            text,
            "synchronize it (timedatectl set-ntp true): tokens and certificates depend on it",
        )
    return Finding(area, "clock", "ok", f"within {MAX_SKEW:.0f} s of the server's")
