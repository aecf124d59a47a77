"""What our clients speak.

`ENDPOINTS` is the table from which the server makes its routes, each with and without `/v1`: an endpoint
decodes a body into a `Turn` and encodes the events of its answer, streamed or whole.  A new one is a
module here and a row in the table; the server, the relay and the upstreams do not move.  `embeddings` is no row: what
asks for vectors has no turn, no events and no stream, and so a family of routes of its own (`server.embedding`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from qproxy.wire.endpoints import chat, completions, responses
from qproxy.wire.errors import QproxyError
from qproxy.wire.events import Event, Turn


class StreamEncoder(Protocol):
    """A stage from events to the client's bytes, which can also say that the stream failed."""

    def feed(self, event: Event, /) -> Iterable[bytes]: ...

    def close(self) -> Iterable[bytes]: ...

    def error_event(self, error: QproxyError, /) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One way to ask for a turn."""

    path: str
    """Below `/v1`."""
    id_prefix: str
    decode: Callable[..., Turn]
    encoder: Callable[[Turn], StreamEncoder]
    response: Callable[[Turn, Iterable[Event]], dict[str, Any]]
    exposes_server_tools: bool = False
    """Its clients see the calls of this server's tools, and send them back with the conversation."""


ENDPOINTS = (
    Endpoint("/chat/completions", "chatcmpl-", chat.decode, chat.Encoder, chat.response),
    Endpoint("/completions", "cmpl-", completions.decode, completions.Encoder, completions.response),
    Endpoint(
        "/responses",
        "resp_",
        responses.decode,
        responses.Encoder,
        responses.response,
        exposes_server_tools=True,
    ),
)
