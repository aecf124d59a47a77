"""The vectors of a client's request, encoded as it wants them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import trio

from qproxy.relay.event_stream import apart
from qproxy.wire import embeddings as vectors
from qproxy.wire.json_codec import LARGE


@dataclass(frozen=True, slots=True)
class EmbeddingResult:
    """The embeddings of a request."""

    vectors: list[bytes]
    """The encoded vectors in the order of the request."""
    tokens: int


async def encode_rows(rows: Sequence[bytes], written: list[bytes], *, base64: bool) -> None:
    """Append the encoded vectors to `written`, with a checkpoint after each: encoding is CPU work."""
    for row in rows:
        encode = partial(vectors.encode_vectors, row, base64=base64)
        written.append(await apart(encode) if len(row) > LARGE else encode())
        await trio.lowlevel.checkpoint()
