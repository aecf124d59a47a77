"""The routes that rank documents, in the shapes of Cohere (`/v2/rerank`), Jina, vLLM and TEI (`/rerank`)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from qproxy.relay.rerank import rerank, size_of
from qproxy.server import request_context
from qproxy.server.http_response import HTTPResponse, json_response
from qproxy.server.request_body import read_json
from qproxy.server.state import Route, StateHolder
from qproxy.server.usage_limits import reserve_usage
from qproxy.wire import rerank as endpoint
from qproxy.wire.endpoints import OPENAI


class RerankRoutes:
    """Rank documents by their relevance to a query."""

    def __init__(self, server: StateHolder) -> None:
        self._server = server

    def routes(self) -> Iterator[Route]:
        for path, v2 in (("/rerank", False), ("/v2/rerank", True)):
            yield Route(
                path,
                ("POST",),
                partial(self._view, v2),
                versioned=not v2,
                api=OPENAI,
                operation="rerank",
                schema=endpoint.SCHEMA,
                fast_path=True,
            )

    async def _view(self, v2: bool) -> HTTPResponse:
        state, record, stack = self._server.state, request_context.record(), request_context.stack()
        in_flight = state.in_flight.add(
            stack, state.request_limits.client_request_timeout, "client_request_timeout"
        )
        with in_flight.deadline_scope():
            request = endpoint.decode(await read_json(state.request_limits, state.body_logger), v2=v2)
            await reserve_usage(state, request.model, size_of(request))
            stack.callback(await state.concurrency.acquire())
            ranked, tokens = await rerank(state.relay, request, record.relay)
            record.first_byte = record.response_started = record.seconds
        return json_response(endpoint.response(request, ranked, tokens, f"rerank-{record.id}"))
