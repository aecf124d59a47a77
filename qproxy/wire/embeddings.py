"""Embeddings' vocabulary: what a client asks (`EmbeddingInput`) and what a model answers (`EmbeddingOutput`), beside Turn and events.

The idea: a vector is carried as the bytes that the server wrote.  2,048 vectors of 1,024 numbers are 45 MB of JSON,
and reading or writing that in one go would keep every other request waiting for a second.  So an answer's arrays are
cut out by looking for their brackets, which costs next to nothing, and then each is checked and written by itself
(`encode_vectors`, well under a millisecond): whoever does many of them can let others in between.  It also gives the client
the server's own digits.

JSON: RFC 8259.  base64: RFC 4648; at OpenAI it holds little-endian IEEE 754 binary32.
"""

from __future__ import annotations

import math
import re
import struct
from base64 import b64decode, b64encode
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from qproxy.wire import json_codec
from qproxy.wire.errors import UpstreamError
from qproxy.wire.events import JSON

_SIZE = 4
_ARRAY = re.compile(rb'"embedding"\s*:\s*\[')  # within a string the quotes would be escaped


@dataclass(frozen=True, slots=True)
class EmbeddingInput:
    """One request for a vector of each text, free of any endpoint's spelling."""

    model: str
    """As the client wrote it: what the answer echoes."""
    texts: Sequence[str]
    params: Mapping[str, JSON] = field(default_factory=dict)
    """Every other field, by OpenAI's or Qwen's name."""
    base64: bool = False
    """How the client wants the numbers."""
    ignored: tuple[str, ...] = ()

    def batches(self, size: int) -> Iterator[EmbeddingInput]:
        """The same request in pieces of at most `size` texts."""
        for start in range(0, len(self.texts), size):
            yield replace(self, texts=self.texts[start : start + size])


@dataclass(frozen=True, slots=True)
class EmbeddingOutput:
    """The answer to one request."""

    rows: Sequence[bytes]
    """In the order of the texts, each the JSON text that the server wrote: an array, or a string of base64."""
    tokens: int


def extract_vectors(body: bytes) -> tuple[JSON, list[bytes]]:
    """A body whose arrays called "embedding" are replaced by their number in the list; ValueError: it is not JSON."""
    rows: list[bytes] = []
    cooldown: list[bytes] = []
    position = 0
    while match := _ARRAY.search(body, position):
        start, end = match.end() - 1, body.find(b"]", match.end()) + 1
        if not end:
            raise ValueError("an array does not end")
        cooldown += (body[position:start], b"%d" % len(rows))
        rows.append(body[start:end])
        position = end
    return json_codec.loads(b"".join([*cooldown, body[position:]])), rows


def encode_vectors(row: bytes, *, base64: bool) -> bytes:
    """The row as the client wants it: an array of numbers, or base64.  UpstreamError when it is no vector."""
    try:
        value = json_codec.loads(row)
        packed = (
            b64decode(value, validate=True) if isinstance(value, str) else _format_of(len(value)).pack(*value)
        )
        numbers = _format_of(len(packed) // _SIZE).unpack(packed)
    except (ValueError, TypeError, OverflowError, struct.error):
        raise invalid_vectors_error("something that is not a vector of numbers") from None
    if not numbers or not math.isfinite(sum(numbers)):
        raise invalid_vectors_error("a vector that is empty or has a number beyond all bounds")
    if base64:
        return b'"%b"' % b64encode(packed)
    return json_codec.dumps(numbers) if isinstance(value, str) else row


def _format_of(count: int) -> struct.Struct:
    return struct.Struct(f"<{count}f")


def invalid_vectors_error(what: str) -> UpstreamError:
    """The error of an answer that cannot be used."""
    message = f"The model's server answered a request for embeddings with {what}."
    return UpstreamError(message, code="upstream_invalid_response")
