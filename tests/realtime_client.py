"""Realtime clients for tests: a WebSocket to an app, over a memory pair or a real socket, and its events."""

import json
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import trio
from trio_websocket import ConnectionClosed, wrap_client_stream

from tests.helpers import served

MODEL = "qwen3-omni-flash-realtime"
BETA = (b"openai-beta", b"realtime=v1")
UPGRADE = (
    b"GET / HTTP/1.1\r\nhost: x\r\nconnection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n"
    b"sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-extensions: permessage-deflate\r\n\r\n"
)
"""A request that asks for a WebSocket."""
TOOL = {
    "type": "function",
    "name": "get_weather",
    "description": "The weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


def user(text):
    content = [{"type": "input_text", "text": text}]
    return {
        "type": "conversation.item.create",
        "item": {"type": "message", "role": "user", "content": content},
    }


@dataclass
class Talk:
    """A client's end of one session."""

    socket: Any
    received: list = field(default_factory=list)

    async def send(self, event):
        await self.socket.send_message(event if isinstance(event, str | bytes) else json.dumps(event))

    async def receive(self):
        event = json.loads(await self.socket.get_message())
        self.received.append(event)
        return event

    async def until(self, kind):
        """Return the next event of this kind; `received` keeps those before it."""
        while (event := await self.receive())["type"] != kind:
            pass
        return event

    async def end(self):
        """Return (events up to the end, close code, reason)."""
        events = []
        try:
            while True:
                events.append(await self.receive())
        except ConnectionClosed as closed:
            reason: Any = closed.reason
            return events, reason.code, reason.reason


@asynccontextmanager
async def over(stream, model: str | None = MODEL, headers=(), subprotocols=(), path="/v1/realtime"):
    """Yield a session over an open stream; raise trio_websocket.ConnectionRejected when it is rejected."""
    async with trio.open_nursery() as nursery:
        socket = await wrap_client_stream(
            nursery,
            stream,
            "localhost",
            f"{path}?model={model}" if model else path,
            extra_headers=list(headers),
            subprotocols=list(subprotocols),
            max_message_size=2**24,
        )
        yield Talk(socket)
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def talk(app, model: str | None = MODEL, headers=(), subprotocols=(), path="/v1/realtime", **config):
    """Yield a session with an app that Hypercorn serves over a memory pair."""
    async with served(app, **config) as stream, over(stream, model, headers, subprotocols, path) as talking:
        yield talking
