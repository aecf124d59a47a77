"""The APIs that clients speak, as a table.

The server makes a route of every row of `ENDPOINTS`, with and without `/v1`: an endpoint decodes a body into
a `Turn` and encodes the events of its response, streamed or whole. The errors, headers, keys and keep-alive
that it shares with its vendor's other endpoints are its row's `Api`. A new endpoint is a module here and a
row in the table; the server, the relay, the metrics and the dialects do not change.

A route that produces no turn (embeddings, the list of models) is no row: its `server.state.Route` has an
`Api` too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from qproxy.wire.endpoints import anthropic, chat, completions, request_schemas, responses
from qproxy.wire.endpoints.anthropic import ANTHROPIC
from qproxy.wire.endpoints.api import Api, RateLimitStatus, find_api
from qproxy.wire.endpoints.openai_api import OPENAI
from qproxy.wire.errors import QproxyError
from qproxy.wire.events import JSON, Event, Turn


class StreamEncoder(Protocol):
    """A stage from events to the client's bytes; `close` ends the stream, `error_event` reports a failure."""

    def feed(self, event: Event, /) -> Iterable[bytes]: ...

    def close(self) -> Iterable[bytes]: ...

    def error_event(self, error: QproxyError, /) -> bytes: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One endpoint: how a request is decoded and its response encoded."""

    path: str
    """The path below `/v1`."""
    api: Api
    id_prefix: str
    decode: Callable[..., Turn]
    encoder: Callable[[Turn], StreamEncoder]
    response: Callable[[Turn, Iterable[Event]], dict[str, Any]]
    schema: JSON
    """JSON Schema of a request's body, for the OpenAPI document."""
    operation: str
    """`gen_ai.operation.name` of OpenTelemetry, for metrics and traces."""
    selects_params: bool = False
    """It passes only the parameters that it knows and Qwen's own, which `decode` gets as `qwen_params`."""
    exposes_server_tools: bool = False
    """Its clients see the calls of this server's tools, and send them back with the conversation."""


ENDPOINTS = (
    Endpoint(
        path="/chat/completions",
        api=OPENAI,
        id_prefix="chatcmpl-",
        decode=chat.decode,
        encoder=chat.Encoder,
        response=chat.response,
        schema=request_schemas.CHAT,
        operation="chat",
    ),
    Endpoint(
        path="/completions",
        api=OPENAI,
        id_prefix="cmpl-",
        decode=completions.decode,
        encoder=completions.Encoder,
        response=completions.response,
        schema=request_schemas.COMPLETIONS,
        operation="text_completion",
    ),
    Endpoint(
        path="/responses",
        api=OPENAI,
        id_prefix="resp_",
        decode=responses.decode,
        encoder=responses.Encoder,
        response=responses.response,
        schema=request_schemas.RESPONSES,
        operation="chat",
        selects_params=True,
        exposes_server_tools=True,
    ),
    Endpoint(
        path="/responses/compact",
        api=OPENAI,
        id_prefix="resp_",
        decode=responses.decode_compaction,
        encoder=responses.Encoder,
        response=responses.compaction_response,
        schema=request_schemas.COMPACTION,
        operation="chat",
        selects_params=True,
        exposes_server_tools=True,
    ),
    Endpoint(
        path="/messages",
        api=ANTHROPIC,
        id_prefix="msg_",
        decode=anthropic.decode,
        encoder=anthropic.Encoder,
        response=anthropic.response,
        schema=anthropic.request_schema("messages", "max_tokens"),
        operation="chat",
        selects_params=True,
    ),
)

__all__ = [
    "ANTHROPIC",
    "ENDPOINTS",
    "OPENAI",
    "Api",
    "Endpoint",
    "RateLimitStatus",
    "StreamEncoder",
    "find_api",
]
