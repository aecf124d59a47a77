"""The APIs of Qwen's upstreams.

One module per dialect, each with `request`, `Decoder` and `response` (the contract is in `qproxy.wire`).
`error_mapping` maps every upstream error to one tree (`error_text` finds its words); `request_rules` adapts
requests to each family of upstreams; `amendments` amends a rejected request. A new dialect is one more row of
`DIALECTS`.
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
    """One API of a Qwen upstream."""

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
