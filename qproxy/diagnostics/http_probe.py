"""Whole HTTP responses of a server."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from qproxy.transport import UpstreamTransport
from qproxy.wire import json_codec
from qproxy.wire.dialects.error_mapping import error_from_response
from qproxy.wire.errors import UpstreamError
from qproxy.wire.http_request import Headers, HTTPRequest

WEB_PAGE_ADVICE = "check the base URL: an API answers with JSON, usually at a path that ends with /v1"
MAX_RESPONSE_BYTES = 4 * 1024 * 1024
"""Limit for a model list, or for the response to a small test request."""


@dataclass(frozen=True, slots=True)
class HttpReply:
    """An HTTP response."""

    status: int
    headers: Headers = field(repr=False)
    body: bytes = field(repr=False)

    def header(self, name: bytes) -> str:
        """Return the first value of a header, "" without one."""
        return next((value.decode("latin-1") for key, value in self.headers if key == name), "")

    def json(self) -> Any:
        """Return the parsed body, None if it is not JSON."""
        try:
            return json_codec.loads(self.body)
        except ValueError:
            return None

    @property
    def is_web_page(self) -> bool:
        """Return whether it is for a browser, so that the URL is not that of an API."""
        return self.header(b"content-type").lower().startswith("text/html")

    @property
    def message(self) -> str:
        """Return the status and the error message of the body, in one line."""
        if 300 <= self.status < 400:
            return error_from_response(self.status, self.headers, self.body).message
        body = self.json()
        error = body.get("error", body.get("message")) if isinstance(body, dict) else None
        text = error.get("message") if isinstance(error, dict) else error
        words = str(text or self.body[:200].decode(errors="replace")).split()
        return f"status {self.status}: {' '.join(words)[:300]}"


async def versioned_base_url(transport: UpstreamTransport, base_url: str, headers: Headers) -> str | None:
    """Return a base URL with /v1 added if that one has a model list, or None."""
    if base_url.endswith("/v1"):
        return None
    try:
        reply = await fetch(transport, HTTPRequest("GET", f"{base_url}/v1/models", headers))
    except UpstreamError:
        return None
    has_list = reply.status in (401, 403) or (reply.status == 200 and isinstance(reply.json(), dict))
    return f"{base_url}/v1" if has_list else None


async def fetch(transport: UpstreamTransport, request: HTTPRequest) -> HttpReply:
    """Send a request and return the response. Raises UpstreamError, also for one above MAX_RESPONSE_BYTES."""
    async with await transport.send(request) as response:
        return HttpReply(response.status, response.headers, await response.read(MAX_RESPONSE_BYTES))
