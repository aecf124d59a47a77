"""The routes that answer typed questions with probabilities: OpenAI's and Model Studio's."""

from __future__ import annotations

import time
from collections.abc import Iterator

from qproxy.relay.decisions import decide, size_of
from qproxy.server import request_context
from qproxy.server.http_response import HTTPResponse, json_response
from qproxy.server.request_body import read_json
from qproxy.server.state import Route, StateHolder
from qproxy.server.usage_limits import reserve_usage
from qproxy.wire.decisions import Answer, DecisionInput, chat, openai, system_one
from qproxy.wire.endpoints import OPENAI
from qproxy.wire.events import JSON, Usage


class DecisionRoutes:
    """Answer questions about an input."""

    def __init__(self, server: StateHolder) -> None:
        self._server = server

    def routes(self) -> Iterator[Route]:
        yield Route(
            "/decisions",
            ("POST",),
            self._decisions,
            api=OPENAI,
            operation="decision",
            schema=openai.SCHEMA,
            fast_path=True,
        )
        yield Route(
            "/systemone",
            ("POST",),
            self._system_one,
            api=OPENAI,
            operation="decision",
            schema=system_one.SCHEMA,
            fast_path=True,
        )

    async def _decisions(self) -> HTTPResponse:
        request = openai.decode(await self._body())
        answers, usage = await self._decide(request)
        return json_response(openai.response(request, answers, usage))

    async def _system_one(self) -> HTTPResponse:
        request = system_one.decode(await self._body())
        answers, usage = await self._decide(request)
        seconds = request_context.record().seconds
        return json_response(system_one.response(request, answers, usage, seconds * 1000))

    async def _body(self) -> JSON:
        state = self._server.state
        return await read_json(state.request_limits, state.body_logger)

    async def _decide(self, request: DecisionInput) -> tuple[list[Answer], Usage]:
        state, record, stack = self._server.state, request_context.record(), request_context.stack()
        in_flight = state.in_flight.add(
            stack, state.request_limits.client_request_timeout, "client_request_timeout"
        )
        with in_flight.deadline_scope():
            tokens = chat.MAX_TOKENS * len(request.questions)
            await reserve_usage(state, request.model, size_of(state.relay, request), tokens)
            stack.callback(await state.concurrency.acquire())
            answers, usage = await decide(
                state.relay, request, record.relay, id=record.id, created=int(time.time())
            )
            record.first_byte = record.response_started = record.seconds
        return answers, usage
