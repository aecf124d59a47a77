"""A server's answer as it came, whole."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from qproxy.transport import UpstreamTransport
from qproxy.wire import json_codec
from qproxy.wire.http_request import Headers, HTTPRequest

MAX_RESPONSE_BYTES = 4 * 1024 * 1024
"""Of a list of models, or of an answer to a question as small as ours."""


@dataclass(frozen=True, slots=True)
class HttpReply:
    """An answer as it came."""

    status: int
    headers: Headers = field(repr=False)
    body: bytes = field(repr=False)

    def header(self, name: bytes) -> str:
        return next((value.decode("latin-1") for key, value in self.headers if key == name), "")

    def json(self) -> Any:
        """What the body says; None where it is not JSON."""
        try:
            return json_codec.loads(self.body)
        except ValueError:
            return None

    @property
    def message(self) -> str:
        """Why there is no answer."""
        body = self.json()
        error = body.get("error", body.get("message")) if isinstance(body, dict) else None
        text = error.get("message") if isinstance(error, dict) else error
        return f"status {self.status}: {str(text or self.body[:200].decode(errors='replace'))[:300]}"


async def fetch(transport: UpstreamTransport, request: HTTPRequest) -> HttpReply:
    """The answer to a request.  UpstreamError where there is none, or too much of one."""
    async with await transport.send(request) as response:
        return HttpReply(response.status, response.headers, await response.read(MAX_RESPONSE_BYTES))
