"""Downloads of the files that an upstream's response links to: sound, pictures, transcripts.

The link is an upstream's text: only hosts of the setting `result_hosts` are connected to, by https, whatever
else it names. Redirects are errors.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AsyncExitStack
from urllib.parse import urlunsplit

from qproxy.transport import UpstreamResponse, UpstreamTransport
from qproxy.wire.errors import UpstreamError
from qproxy.wire.host_pattern import is_allowed, split_url
from qproxy.wire.http_request import HTTPRequest


async def open_result(
    transport: UpstreamTransport, url: object, hosts: Iterable[str], stack: AsyncExitStack
) -> UpstreamResponse:
    """Return the response with a file, which `stack` closes. Raises UpstreamError for a host that is not
    allowed."""
    response = await transport.send(HTTPRequest("GET", _checked(url, tuple(hosts))))
    await stack.enter_async_context(response)
    if response.status != 200:
        raise _failure(f"the server of the result answered {response.status}")
    return response


async def download_result(
    transport: UpstreamTransport, url: object, hosts: Iterable[str], max_bytes: int
) -> bytes:
    """Return a file. Raises UpstreamError, also for one of more than `max_bytes`."""
    async with AsyncExitStack() as stack:
        response = await open_result(transport, url, hosts, stack)
        return await response.read(max_bytes)


def _checked(url: object, hosts: tuple[str, ...]) -> str:
    """Return the URL, with https for http unless its origin is allowed as it is. Raises UpstreamError."""
    parts = split_url(url) if isinstance(url, str) else None
    if parts is None:
        raise _failure("the response links to no file")
    if is_allowed(parts, hosts):
        return urlunsplit(parts)
    secure = parts._replace(scheme="https", netloc=(parts.hostname or ""))
    if parts.scheme == "http" and parts.port in (None, 80) and is_allowed(secure, hosts):
        return urlunsplit(secure)
    raise _failure(f"the response links to {parts.hostname}, which is none of result_hosts")


def _failure(reason: str) -> UpstreamError:
    message = f"The upstream's result cannot be downloaded: {reason}."
    return UpstreamError(message, code="upstream_invalid_response")
