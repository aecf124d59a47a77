"""The way to a server: its name, the proxy, the connection, the certificate, and whether its clock and ours agree.

The connection is made as the transport makes one for a request, so it takes the same proxy, authorities and limits.
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
    """How a request to this URL gets there; the last finding has failed where it does not."""
    try:
        origin, proxy = transport.route(url)
    except UpstreamError as error:
        return [Finding(area, "address", "failed", error.message, "write it as http(s)://host[:port]/path")]
    found = []
    if proxy is not None:
        found.append(Finding(area, "proxy", "ok", f"by way of {proxy.origin.authority}"))
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
    found.append(Finding(area, "connection", "ok", f"{reached.authority} answers"))
    if isinstance(stream, trio.SSLStream):
        found.append(check_certificate(stream.getpeercert(), str(stream.version()), area, wall_clock))
    await trio.aclose_forcefully(stream)
    return found


async def _name(host: str, port: int, area: str) -> Finding:
    advice = "see the name, /etc/resolv.conf and the network"
    try:
        with trio.fail_after(DNS_SECONDS):
            entries = await trio.socket.getaddrinfo(host, port, type=trio.socket.SOCK_STREAM)
    except trio.TooSlowError:
        text = f"nothing said what {host} is within {DNS_SECONDS:g} s"
        return Finding(area, "DNS", "failed", text, advice)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        return Finding(area, "DNS", "failed", f"{host}: {reason}", advice)
    addresses = sorted({str(entry[4][0]) for entry in entries})
    more = f" and {len(addresses) - 3} more" if len(addresses) > 3 else ""
    return Finding(area, "DNS", "ok", f"{host} is {', '.join(addresses[:3])}{more}")


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
            "if the authority is your own, set ca_bundle; if it is not yet or no longer valid, see the clock"
        )
    if "tls" in text:
        return "see whether the port speaks TLS, and whether something in between breaks it open"
    if proxied:
        return "see the setting proxy, or the variables HTTPS_PROXY, ALL_PROXY and NO_PROXY"
    host = url.partition("://")[2].partition("/")[0]
    return f"see whether the server at {host} runs, and firewalls; behind a proxy set proxy or HTTPS_PROXY"


def check_certificate(peer: dict[str, Any], version: str, area: str, wall_clock: float) -> Finding:
    """How long the server's certificate is good: that it is good now, the handshake has shown."""
    days = int((ssl.cert_time_to_seconds(peer["notAfter"]) - wall_clock) // DAY)
    text = f"{version}, the certificate is good until {peer['notAfter']} ({days} days)"
    if days < EXPIRES_SOON_DAYS:
        return Finding(area, "TLS", "warning", text, "tell whoever runs the server, or it will be refused")
    return Finding(area, "TLS", "ok", text)


def check_clock(date: str, area: str, wall_clock: float) -> Finding:
    """Our clock beside the server's, by its Date field."""
    try:
        theirs = parsedate_to_datetime(date).timestamp()
    except (ValueError, OverflowError):
        return Finding(area, "clock", "skipped", "the server does not say what time it is")
    skew = wall_clock - theirs
    if abs(skew) > MAX_SKEW:
        text = f"ours is {abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} the server's"
        return Finding(
            area,
            "clock",
            "warning",
            text,
            "set it (timedatectl set-ntp true): tokens and certificates end by it",
        )
    return Finding(area, "clock", "ok", f"agrees with the server's within {MAX_SKEW:.0f} s")
