"""One request to an app without a socket, and its response.

The app runs in a task of its own; its messages arrive one by one, so that it waits for its reader.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, TypeAlias

import trio

DISCONNECT_TIMEOUT = 1.0
AsgiApp: TypeAlias = Callable[[Any, Any, Any], Awaitable[None]]
log = logging.getLogger("qproxy.server")


class InProcessError(Exception):
    """The app ended a request before its response was complete; `__cause__` is its exception, if any."""


class InProcessResponse:
    """A response: its head, and its body chunk by chunk."""

    def __init__(self, app: AsgiApp, scope: dict[str, Any], body: bytes) -> None:
        self._app = app
        self._scope = scope
        self._inbox = [{"type": "http.request", "body": body, "more_body": False}]
        self._sender, self._chunks = trio.open_memory_channel[Any](0)
        self._disconnected = trio.Event()
        self._finished = trio.Event()
        self._app_scope = trio.CancelScope()
        self._app_error: Exception | None = None
        self._complete = False
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []

    async def run(self) -> None:
        """Run the app for this request; its exception is the cause of the reader's InProcessError."""
        try:
            with self._app_scope:
                await self._app(self._scope, self._receive, self._send)
        except Exception as error:
            log.exception("the app raised an exception")
            self._app_error = error
        finally:
            self._sender.close()
            self._finished.set()

    async def start(self) -> None:
        """Wait for the head. Raises InProcessError."""
        head = await self._next_message()
        self.status, self.headers = head["status"], list(head.get("headers", ()))

    async def receive(self) -> bytes:
        """Return the next bytes of the body; b"" at the end. Raises InProcessError."""
        while not self._complete:
            message = await self._next_message()
            self._complete = not message.get("more_body")
            if message.get("body"):
                return bytes(message["body"])
        return b""

    async def read(self) -> bytes:
        """Return the rest of the body. Raises InProcessError."""
        pieces = []
        while piece := await self.receive():
            pieces.append(piece)
        return b"".join(pieces)

    def disconnect(self) -> None:
        """Send the app a disconnect; it is cancelled if it does not finish in time."""
        self._disconnected.set()
        self._app_scope.deadline = trio.current_time() + DISCONNECT_TIMEOUT
        self._chunks.close()

    async def aclose(self) -> None:
        """Disconnect, and wait until the app has finished."""
        self.disconnect()
        await self._finished.wait()

    async def _next_message(self) -> Any:
        try:
            return await self._chunks.receive()
        except trio.EndOfChannel:
            raise InProcessError("The app ended before its response was complete.") from self._app_error

    async def _receive(self) -> Any:
        if self._inbox:
            return self._inbox.pop()
        await self._disconnected.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        with suppress(trio.BrokenResourceError):  # as in ASGI: messages after a disconnect are dropped
            await self._sender.send(message)
