"""The routes that count a prompt's tokens: by an own server's tokenizer if it has one, otherwise without.

It is free and needs no account: Claude Code calls it by the dozen, and falls back to paid requests where it
is missing. It counts as one request against a key's rate limit, and as no tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import trio

from qproxy.server import request_context
from qproxy.server.http_response import HTTPResponse, json_response
from qproxy.server.request_body import read_json
from qproxy.server.request_files import resolve_files
from qproxy.server.routes.responses import ResponseHistory
from qproxy.server.routes.stored_items import client_owner
from qproxy.server.state import Route, ServerState, StateHolder
from qproxy.server.usage_limits import reserve_request
from qproxy.wire import token_estimate
from qproxy.wire.endpoints import ANTHROPIC, OPENAI, anthropic, request_schemas, responses
from qproxy.wire.endpoints.file_parts import UnresolvedFile
from qproxy.wire.events import Turn
from qproxy.wire.models import ModelSpec

TEXTS_PER_CHECKPOINT = 16
"""Texts counted between two checkpoints; each takes at most some 15 ms, nearly all far less."""


class TokenCountRoutes:
    """Count the tokens of Messages and Responses requests."""

    def __init__(self, server: StateHolder) -> None:
        self._server = server
        self._counters = {
            vocabulary: token_estimate.TokenCounter(vocabulary)
            for vocabulary in token_estimate.VOCABULARIES.values()
        }

    def routes(self) -> Iterator[Route]:
        yield Route(
            "/messages/count_tokens",
            ("POST",),
            self._count_message,
            api=ANTHROPIC,
            schema=anthropic.request_schema("messages"),
            fast_path=True,
        )

        yield Route(
            "/responses/input_tokens",
            ("POST",),
            self._count_input,
            api=OPENAI,
            schema=request_schemas.INPUT_TOKENS,
            fast_path=True,
        )

    async def _count_message(self) -> HTTPResponse:
        state = self._server.state
        body = await read_json(state.request_limits, state.body_logger)
        turn = anthropic.decode_count(body, **_decode_arguments(state))
        return json_response({"input_tokens": await self._count(state, turn)})

    async def _count_input(self) -> HTTPResponse:
        state = self._server.state
        body = await read_json(state.request_limits, state.body_logger)
        history = await ResponseHistory(state).load(body)
        arguments = {**_decode_arguments(state), **history}
        try:
            turn = responses.decode_count(body, **arguments)
        except UnresolvedFile:
            body = await resolve_files(body, state.files, client_owner(), state.request_limits)
            turn = responses.decode_count(body, **arguments)
        return json_response(
            {"object": "response.input_tokens", "input_tokens": await self._count(state, turn)}
        )

    async def _count(self, state: ServerState, turn: Turn) -> int:
        served = await reserve_request(state, turn.model)
        request_context.record().relay.ignored = turn.ignored
        tokens = await state.tokenizers.count(turn, served)
        if tokens is None:
            tokens = await self._estimate(turn, state.relay.policy.catalog.get(served))
        return tokens

    async def _estimate(self, turn: Turn, spec: ModelSpec) -> int:
        """Return the tokens of a prompt by the classes of its words, with checkpoints."""
        counter = self._counters[token_estimate.vocabulary_of(spec)]
        tokens = 0
        for number, count in enumerate(counter.count_prompt(turn), 1):
            tokens += count
            if number % TEXTS_PER_CHECKPOINT == 0:
                await trio.lowlevel.checkpoint()
        return tokens


def _decode_arguments(state: ServerState) -> dict[str, Any]:
    return {
        "default_model": state.default_model,
        "max_messages": state.request_limits.max_messages,
        "qwen_params": state.relay.policy.catalog.qwen_params,
    }
