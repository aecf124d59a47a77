"""The vocabulary of embeddings: requests (`EmbeddingInput`) and responses (`EmbeddingOutput`).

A vector is carried as the bytes that the server wrote. 2,048 vectors of 1,024 numbers are 45 MB of JSON, and
parsing that at once would block every other request for a second. So a response's arrays are cut out by their
brackets, which is cheap, and each is checked and written by itself (`encode_vectors`, well under a
millisecond), so that callers can yield in between. The client also gets the server's own digits.

JSON: RFC 8259. base64: RFC 4648; OpenAI's holds little-endian IEEE 754 binary32.
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
    """One request for a vector of each text, independent of any endpoint."""

    model: str
    """The model as the client wrote it; responses echo it."""
    texts: Sequence[str]
    params: Mapping[str, JSON] = field(default_factory=dict)
    """Every other field, under OpenAI's or Qwen's name."""
    base64: bool = False
    """Whether the client wants base64 rather than numbers."""
    ignored: tuple[str, ...] = ()

    def batches(self, size: int) -> Iterator[EmbeddingInput]:
        """Yield the same request in batches of at most `size` texts."""
        for start in range(0, len(self.texts), size):
            yield replace(self, texts=self.texts[start : start + size])


@dataclass(frozen=True, slots=True)
class EmbeddingOutput:
    """The response to one request."""

    rows: Sequence[bytes]
    """In the order of the texts, each the JSON text that the server wrote: an array, or a base64 string."""
    tokens: int


def extract_vectors(body: bytes) -> tuple[JSON, list[bytes]]:
    """Return a body whose "embedding" arrays are replaced by their index in the list, and the list.

    Raises ValueError if it is not JSON.
    """
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
    """Return the row as the client wants it: an array of numbers, or base64.

    Raises UpstreamError if it is not a vector.
    """
    try:
        value = json_codec.loads(row)
        if isinstance(value, str):
            packed = b64decode(value, validate=True)
            numbers = _format_of(len(packed) // _SIZE).unpack(packed)
        else:
            format = _format_of(len(value))
            packed = format.pack(*value)
            numbers = format.unpack(packed)
    except (ValueError, TypeError, OverflowError, struct.error):
        raise invalid_vectors_error("a vector that is not made of numbers") from None
    if not numbers or not math.isfinite(sum(numbers)):
        raise invalid_vectors_error("a vector that is empty or not finite")
    if base64:
        return b'"%b"' % b64encode(packed)
    return json_codec.dumps(numbers) if isinstance(value, str) else row


def _format_of(count: int) -> struct.Struct:
    return struct.Struct(f"<{count}f")


def invalid_vectors_error(what: str) -> UpstreamError:
    """Return the error for an unusable response."""
    message = f"The upstream answered an embeddings request with {what}."
    return UpstreamError(message, code="upstream_invalid_response")
