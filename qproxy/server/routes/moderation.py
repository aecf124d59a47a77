"""The route that judges inputs by OpenAI's categories."""

from __future__ import annotations

import time
from collections.abc import Iterator

from qproxy.relay.moderation import Moderation
from qproxy.server import request_context
from qproxy.server.http_response import HTTPResponse, json_response
from qproxy.server.request_body import read_json
from qproxy.server.state import Route, StateHolder
from qproxy.server.usage_limits import reserve_usage
from qproxy.wire import moderation as endpoint
from qproxy.wire.endpoints import OPENAI


class ModerationRoutes:
    """Judge texts and images."""

    def __init__(self, server: StateHolder) -> None:
        self._server = server

    def routes(self) -> Iterator[Route]:
        yield Route(
            "/moderations",
            ("POST",),
            self._view,
            api=OPENAI,
            operation="moderation",
            schema=endpoint.SCHEMA,
            fast_path=True,
        )

    async def _view(self) -> HTTPResponse:
        state, record, stack = self._server.state, request_context.record(), request_context.stack()
        policy = state.relay.policy
        in_flight = state.in_flight.add(
            stack, state.request_limits.client_request_timeout, "client_request_timeout"
        )
        with in_flight.deadline_scope():
            body = await read_json(state.request_limits, state.body_logger)
            moderation = Moderation(
                state.relay,
                endpoint.decode(body, policy.moderation_model),
                record.relay,
                record.id,
                int(time.time()),
                policy.flags_controversial,
            )
            await reserve_usage(state, moderation.request.model, moderation.size())
            stack.callback(await state.concurrency.acquire())
            found = await moderation.run()
            record.first_byte = record.response_started = record.seconds
        return json_response(found)
