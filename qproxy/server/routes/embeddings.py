"""The route for embeddings.

A response may be 45 MB of text: it is sent in chunks and never assembled.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from qproxy.access.rate_limits import size_of_contents, size_of_texts
from qproxy.relay.embeddings import create_embeddings
from qproxy.server import request_context
from qproxy.server.http_response import HTTPResponse, StreamingBody
from qproxy.server.request_body import read_json
from qproxy.server.state import Route, StateHolder
from qproxy.server.usage_limits import reserve_usage
from qproxy.wire.embeddings import EmbeddingInput
from qproxy.wire.endpoints import OPENAI, embeddings, multimodal_embeddings, request_schemas

CHUNK_BYTES = 64 * 1024


class EmbeddingRoutes:
    """Create embeddings."""

    def __init__(self, server: StateHolder) -> None:
        self._server = server

    def routes(self) -> Iterator[Route]:
        yield Route(
            "/embeddings",
            ("POST",),
            self._view,
            api=OPENAI,
            operation="embeddings",
            schema=request_schemas.EMBEDDINGS,
            fast_path=True,
        )

    async def _view(self) -> HTTPResponse:
        state, record, stack = self._server.state, request_context.record(), request_context.stack()
        in_flight = state.in_flight.add(
            stack, state.request_limits.client_request_timeout, "client_request_timeout"
        )
        with in_flight.deadline_scope():
            body = await read_json(state.request_limits, state.body_logger)
            request: EmbeddingInput
            if multimodal_embeddings.has_parts(body):
                request = contents = multimodal_embeddings.decode(body)
                size = size_of_contents(contents)
            else:
                request = embeddings.decode(body)
                size = size_of_texts(request)
            await reserve_usage(state, request.model, size)
            stack.callback(await state.concurrency.acquire())
            found = await create_embeddings(state.relay, request, record.relay)
            record.first_byte = record.response_started = record.seconds
        pieces = _EmbeddingBody(embeddings.iter_body(request, found.vectors, found.tokens))
        length = embeddings.content_length(request, found.vectors, found.tokens)
        return HTTPResponse(pieces, headers={"content-length": str(length)})


class _EmbeddingBody(StreamingBody):
    """A body whose chunks are available already."""

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
