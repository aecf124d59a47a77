"""A server's answer as it came, whole."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from qproxy.transport import Transport
from qproxy.wire import json_codec as jsontext
from qproxy.wire.http_request import Headers, HTTPRequest

LARGEST = 4 * 1024 * 1024
"""Of a list of models, or of an answer to a question as small as ours."""


@dataclass(frozen=True, slots=True)
class Got:
    """An answer as it came."""

    status: int
    headers: Headers = field(repr=False)
    body: bytes = field(repr=False)

    def header(self, name: bytes) -> str:
        return next((value.decode("latin-1") for key, value in self.headers if key == name), "")

    def json(self) -> Any:
        """What the body says; None where it is not JSON."""
        try:
            return jsontext.loads(self.body)
        except ValueError:
            return None

    @property
    def said(self) -> str:
        """Why there is no answer."""
        body = self.json()
        error = body.get("error", body.get("message")) if isinstance(body, dict) else None
        words = error.get("message") if isinstance(error, dict) else error
        return f"status {self.status}: {str(words or self.body[:200].decode(errors='replace'))[:300]}"


async def asked(transport: Transport, request: HTTPRequest) -> Got:
    """The answer to a request.  UpstreamError where there is none, or too much of one."""
    async with await transport.send(request) as response:
        return Got(response.status, response.headers, await response.read(LARGEST))
