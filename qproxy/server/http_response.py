"""A response, whoever sends it: Quart, or the lane beside it."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Any

from quart import Response
from quart.wrappers.response import ResponseBody

from qproxy.server.request_policy import JSON_TYPE
from qproxy.wire import json_codec


class StreamingBody(ResponseBody):
    """A body that comes in pieces, one when one is asked for."""

    finished = False
    """Set with the last piece, where that is known then."""

    async def __aenter__(self) -> StreamingBody:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        pass  # what is open is on the request's exit stack

    def __aiter__(self) -> StreamingBody:
        return self

    @abstractmethod
    async def __anext__(self) -> bytes: ...


@dataclass(slots=True)
class HTTPResponse:
    """Status, body and fields (names in lower case)."""

    body: bytes | StreamingBody
    status: int = 200
    content_type: str = JSON_TYPE
    headers: dict[str, str] = field(default_factory=dict)

    def response(self) -> Response:
        """The same for Quart."""
        response = Response(self.body, self.status, self.headers)
        response.content_type = self.content_type
        return response


def json_response(body: Any, status: int = 200) -> HTTPResponse:
    """A JSON body."""
    return HTTPResponse(json_codec.dumps(body), status)
