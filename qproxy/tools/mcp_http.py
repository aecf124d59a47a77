"""HTTP to MCP servers: qproxy's transport below the SDK's client.

The SDK uses httpx2, which has no limits on heads, response length and decompression. So its requests use the
transport of upstream requests (`transport`: bounded heads, timeouts, the configured proxy and certificates),
and responses are checked (`messages`) before the SDK parses them.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator

import httpx2

from qproxy.tools import messages
from qproxy.transport import UpstreamResponse, UpstreamTransport
from qproxy.wire.errors import UpstreamError
from qproxy.wire.http_request import HTTPRequest

_EXCLUDED_HEADERS = frozenset(
    (b"host", b"content-length", b"transfer-encoding", b"connection", b"accept-encoding", b"user-agent")
)
"""Headers of httpx2 that qproxy's transport writes itself or does not support."""
_LINE_END = re.compile(rb"\r\n?|\n")


class BoundedTransport(httpx2.AsyncBaseTransport):
    """An httpx2 transport over an `UpstreamTransport`, which is closed with it."""

    def __init__(self, transport: UpstreamTransport) -> None:
        self._transport = transport

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        fields = tuple(
            (name.lower(), value)
            for name, value in request.headers.raw
            if name.lower() not in _EXCLUDED_HEADERS
        )
        body = await request.aread()
        try:
            response = await self._transport.send(HTTPRequest(request.method, str(request.url), fields, body))
        except UpstreamError as error:
            raise httpx2.TransportError(str(error)) from None
        coding = response.header(b"content-encoding")
        if coding not in (None, "identity"):
            await response.aclose()
            raise httpx2.TransportError("The response has an unsupported Content-Encoding.")
        return httpx2.Response(response.status, headers=list(response.headers), stream=_Body(response))

    async def aclose(self) -> None:
        await self._transport.aclose()


class _Body(httpx2.AsyncByteStream):
    """A checked response body: one message, or one in each event."""

    def __init__(self, response: UpstreamResponse) -> None:
        self._response = response

    async def __aiter__(self) -> AsyncIterator[bytes]:
        kind = (self._response.header(b"content-type") or "").lower()
        try:
            if kind.startswith("text/event-stream"):
                async for data in self._events():
                    yield data
            else:
                body = await self._response.read(messages.MAX_MESSAGE)
                messages.check(body)
                yield body
        except (UpstreamError, messages.TooLarge) as error:
            raise httpx2.StreamError(str(error)) from None

    async def _events(self) -> AsyncIterator[bytes]:
        """Yield the response's data, counting the values of each event by line, since no JSON string spans
        lines.

        The SDK limits the bytes of an event.
        """
        line: list[bytes] = []
        values = 0
        while data := await self._response.receive():
            first, *others = _LINE_END.split(data)
            line.append(first)
            for following in others:
                whole = b"".join(line)
                values = values + messages.values(whole) if whole else 0
                line = [following]
                if values > messages.MAX_VALUES:
                    raise httpx2.SSEError(f"a message of more than {messages.MAX_VALUES} values")
            yield data

    async def aclose(self) -> None:
        await self._response.aclose()
