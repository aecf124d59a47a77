"""The route for embeddings.

Its answer comes whole, but may be 45 MB of text: it is sent piece by piece and never put together.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from qproxy.access.rate_limits import estimate_texts
from qproxy.relay.embeddings import embed
from qproxy.server import request_context as current
from qproxy.server.http_response import Pieces, Reply
from qproxy.server.routes.generate import json_body
from qproxy.server.state import Parts, Route
from qproxy.server.usage_limits import charge
from qproxy.wire.endpoints import embeddings

PIECE_BYTES = 64 * 1024


class Embedding:
    """The view and its route."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def routes(self) -> Iterator[Route]:
        yield Route("/embeddings", ("POST",), self._view, direct=True)

    async def _view(self) -> Reply:
        parts, record, stack = self._parts, current.record(), current.stack()
        life = parts.lives.one(stack, parts.door.request_timeout)
        with life.limited():
            asked = embeddings.decode(await json_body(parts))
            await charge(parts, asked.model, lambda: (estimate_texts(asked), 0))
            stack.callback(await parts.admission.enter())
            found = await embed(parts.relay, asked, record.story)
            record.first_byte = record.answered = record.seconds
        pieces = _Pieces(embeddings.pieces(asked, found.vectors, found.tokens))
        length = embeddings.length(asked, found.vectors, found.tokens)
        return Reply(pieces, fields={"content-length": str(length)})


class _Pieces(Pieces):
    """A body in pieces that are there already."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = iter(pieces)

    async def __anext__(self) -> bytes:
        joined = bytearray()
        for piece in self._pieces:
            joined += piece
            if len(joined) >= PIECE_BYTES:
                break
        if not joined:
            raise StopAsyncIteration
        return bytes(joined)
