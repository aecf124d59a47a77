"""A transport for `httpx2` and `httpx`, so that SDKs built on them reach the app without a socket.

Unlike the libraries' own `ASGITransport`, it streams, and closing a response is a disconnect. Both libraries
have the same interface, and neither is imported here: the program passes the one that its SDK uses.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

import trio

from qproxy.server.in_process_response import InProcessError, InProcessResponse

T = TypeVar("T")


def make_transport(library: Any, send: Callable[..., InProcessResponse]) -> Any:
    """Return a transport for the library's `AsyncClient`; `send` starts a request."""
    transport = type("InProcessTransport", (_Transport, library.AsyncBaseTransport), {})
    return transport(library, send)


class _Transport:
    """The methods of a transport."""

    def __init__(self, library: Any, send: Callable[..., InProcessResponse]) -> None:
        self._library = library
        self._send = send
        self._stream_class = type("InProcessStream", (_ResponseStream, library.AsyncByteStream), {})

    async def handle_async_request(self, request: Any) -> Any:
        body = b"".join([chunk async for chunk in request.stream])
        reader = _Reader(self._library, request)
        response = self._start(request, body)
        try:
            await reader.wait(response.start)
        except BaseException:
            response.disconnect()
            raise
        return self._library.Response(
            response.status,
            headers=response.headers,
            stream=self._stream_class(response, reader),
            extensions={"http_version": b"HTTP/1.1"},
        )

    def _start(self, request: Any, body: bytes) -> InProcessResponse:
        try:
            return self._send(
                request.method, request.url.raw_path.decode("ascii"), headers=request.headers.raw, body=body
            )
        except RuntimeError:  # the nursery is closed
            raise self._library.ConnectError("The in-process app was shut down.", request=request) from None


class _Reader:
    """Waits for parts of a response, within the request's read timeout and with the library's errors."""

    def __init__(self, library: Any, request: Any) -> None:
        timeouts = request.extensions.get("timeout") or {}
        self._timeout = timeouts.get("read")
        self._library = library
        self._request = request

    async def wait(self, receive: Callable[[], Awaitable[T]]) -> T:
        try:
            with trio.fail_after(math.inf if self._timeout is None else self._timeout):
                return await receive()
        except trio.TooSlowError:
            message = (
                f"No response of the in-process app within {self._timeout:g} s (the client's read timeout)."
            )
            raise self._library.ReadTimeout(message, request=self._request) from None
        except InProcessError as error:
            raise self._library.RemoteProtocolError(str(error), request=self._request) from error


class _ResponseStream:
    """The methods of a response's stream."""

    def __init__(self, response: InProcessResponse, reader: _Reader) -> None:
        self._response = response
        self._reader = reader

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self  # no async generator: SDKs do not close those

    async def __anext__(self) -> bytes:
        if chunk := await self._reader.wait(self._response.receive):
            return chunk
        raise StopAsyncIteration

    async def aclose(self) -> None:
        await self._response.aclose()
