"""A response, on Quart's path or the fast path."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Any

from quart import Response
from quart.wrappers.response import ResponseBody

from qproxy.server.request_body import JSON_TYPE
from qproxy.wire import json_codec


class StreamingBody(ResponseBody):
    """A body in chunks, produced on demand."""

    finished = False
    """Set with the last chunk if it is known to be the last."""

    async def __aenter__(self) -> StreamingBody:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        pass  # the request's exit stack closes everything

    def __aiter__(self) -> StreamingBody:
        return self

    @abstractmethod
    async def __anext__(self) -> bytes: ...


@dataclass(slots=True)
class HTTPResponse:
    """Status, body and headers (names in lower case)."""

    body: bytes | StreamingBody
    status: int = 200
    content_type: str = JSON_TYPE
    headers: dict[str, str] = field(default_factory=dict)

    def response(self) -> Response:
        """Return the response as one of Quart's."""
        response = Response(self.body, self.status, self.headers)
        response.content_type = self.content_type
        return response


def json_response(body: Any, status: int = 200) -> HTTPResponse:
    """Return a response with a JSON body."""
    return HTTPResponse(json_codec.dumps(body), status)
