"""What Qwen's servers speak.

One module a dialect, each with `request`, `Decoder` and `whole` (the contract is in `qproxy.wire`).
`errors` maps every way of refusing to one tree; `rules` mends requests the way each family wants;
`catalogue` knows the limits of the models.  `DIALECTS` is the table: a new dialect is one more row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from qproxy.wire.dialects import dashscope, embeddings
from qproxy.wire.dialects import openai as compatible
from qproxy.wire.dialects.target import Target
from qproxy.wire.embeddings import Texts
from qproxy.wire.events import JSON, Event, Turn
from qproxy.wire.http_request import HTTPRequest
from qproxy.wire.pipeline import Stage
from qproxy.wire.sse import ServerSentEvent


@dataclass(frozen=True, slots=True)
class Dialect:
    """One way to speak to a Qwen server."""

    request: Callable[[Turn, Target], HTTPRequest]
    decoder: Callable[[Target], Stage[ServerSentEvent, Event]]
    whole: Callable[[JSON, Target], list[Event]]
    embed: Callable[[Texts, Target], HTTPRequest]


DIALECTS = {
    "compatible": Dialect(compatible.request, compatible.Decoder, compatible.whole, embeddings.compatible),
    "dashscope": Dialect(dashscope.request, dashscope.Decoder, dashscope.whole, embeddings.native),
}

__all__ = ["DIALECTS", "Dialect", "Target"]
