"""The route for embeddings.

Its answer comes whole, but may be 45 MB of text: it is sent piece by piece and never put together.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from qproxy.access.rate_limits import estimate_texts
from qproxy.relay.embeddings import create_embeddings
from qproxy.server import request_context
from qproxy.server.http_response import HTTPResponse, StreamingBody
from qproxy.server.routes.generate import json_body
from qproxy.server.state import Route, ServerState
from qproxy.server.usage_limits import reserve_usage
from qproxy.wire.endpoints import embeddings

CHUNK_BYTES = 64 * 1024


class EmbeddingRoutes:
    """The view and its route."""

    def __init__(self, state: ServerState) -> None:
        self._state = state

    def routes(self) -> Iterator[Route]:
        yield Route("/embeddings", ("POST",), self._view, fast_path=True)

    async def _view(self) -> HTTPResponse:
        state, record, stack = self._state, request_context.record(), request_context.stack()
        in_flight = state.in_flight.add(stack, state.policy.request_timeout)
        with in_flight.deadline_scope():
            request = embeddings.decode(await json_body(state))
            await reserve_usage(state, request.model, lambda: (estimate_texts(request), 0))
            stack.callback(await state.concurrency.acquire())
            found = await create_embeddings(state.relay, request, record.relay)
            record.first_byte = record.response_started = record.seconds
        pieces = _EmbeddingBody(embeddings.iter_body(request, found.vectors, found.tokens))
        length = embeddings.content_length(request, found.vectors, found.tokens)
        return HTTPResponse(pieces, headers={"content-length": str(length)})


class _EmbeddingBody(StreamingBody):
    """A body in pieces that are there already."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._chunks = iter(pieces)

    async def __anext__(self) -> bytes:
        joined = bytearray()
        for piece in self._chunks:
            joined += piece
            if len(joined) >= CHUNK_BYTES:
                break
        if not joined:
            raise StopAsyncIteration
        return bytes(joined)
