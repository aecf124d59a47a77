"""What Qwen's servers speak.

One module a dialect, each with `request`, `Decoder` and `response` (the contract is in `qproxy.wire`).
`error_mapping` maps every way of refusing to one tree; `request_rules` mends requests the way each family wants;
`amendments` says what a refusal teaches.  `DIALECTS` is the table: a new dialect is one more row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from qproxy.wire.dialects import dashscope, embeddings, openai
from qproxy.wire.dialects.target import UpstreamTarget
from qproxy.wire.embeddings import EmbeddingInput
from qproxy.wire.events import JSON, Event, Turn
from qproxy.wire.http_request import HTTPRequest
from qproxy.wire.pipeline import Stage
from qproxy.wire.sse import ServerSentEvent


@dataclass(frozen=True, slots=True)
class Dialect:
    """One way to speak to a Qwen server."""

    request: Callable[[Turn, UpstreamTarget], HTTPRequest]
    decoder: Callable[[UpstreamTarget], Stage[ServerSentEvent, Event]]
    response: Callable[[JSON, UpstreamTarget], list[Event]]
    embeddings_request: Callable[[EmbeddingInput, UpstreamTarget], HTTPRequest]


DIALECTS = {
    "compatible": Dialect(openai.request, openai.Decoder, openai.response, embeddings.openai_request),
    "dashscope": Dialect(
        dashscope.request, dashscope.Decoder, dashscope.response, embeddings.dashscope_request
    ),
}

__all__ = ["DIALECTS", "Dialect", "UpstreamTarget"]
