"""Stored responses: saved by `POST /v1/responses`, with routes that retrieve, cancel, list and delete them.

Here: the ownership of responses, and errors for missing ones. Not here: the shape of items
(`wire.endpoints.responses`) and the storage (`backends`).

A `completed` or `incomplete` response is saved before its last bytes are sent, so that a client can continue
it as soon as it receives `response.completed`. A failed response is not saved; one in the background is, in
any case. One whose client disconnected is saved as cancelled, so that the client can read its events again. A
response belongs to its client's API key, by the full digest.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from typing import Any

from quart import request

from qproxy.server import request_context
from qproxy.server.background_runs import BackgroundRun
from qproxy.server.conversation_store import ConversationNotFound, ConversationStore
from qproxy.server.http_response import HTTPResponse, json_response
from qproxy.server.in_flight import InFlightRequest
from qproxy.server.response_store import ResponseNotFound, ResponseStore, ResponseStoreError, StoredResponse
from qproxy.server.routes.client_responses import ClientResponses
from qproxy.server.routes.conversations import conversation_not_found
from qproxy.server.routes.generate import NoHistory, StartResponse
from qproxy.server.routes.stored_items import client_owner, include_query, load_items, page_query
from qproxy.server.state import Route, ServerState, StateHolder
from qproxy.server.stream_recorder import EndedStream
from qproxy.wire.endpoints import OPENAI, StreamEncoder, responses
from qproxy.wire.errors import RequestError
from qproxy.wire.events import Turn

log = logging.getLogger("qproxy.server")
Item = dict[str, Any]
FINAL_STATUSES = ("completed", "incomplete")
"""Statuses of responses that can be continued."""


class ResponseHistory(NoHistory):
    """The stored state of one `POST /v1/responses`."""

    def __init__(self, state: ServerState) -> None:
        super().__init__(state)
        self._store = state.responses
        self._owner = client_owner()
        self._request = request_context.record().id
        self._is_kept = False

    async def load(self, body: Any) -> dict[str, Any]:
        """Return the conversation that the request continues, and the items that it references.

        The ids of its responses begin alike: a store keeps them together by that.
        """
        previous, ids = responses.referenced_ids(body)
        conversation = responses.conversation_id(body)
        before: list[Item] = []
        if conversation is not None and previous is not None:
            pass  # an error of the request
        elif conversation is not None:
            before = await _conversation_items(self.state.conversations, self._owner, conversation)
        elif previous is not None:
            before = await _previous_items(self._store, self._owner, previous)
        known = await load_items(self._store, self._owner, ids)
        arguments = {
            "before": before,
            "known": known,
            "keeps": self._store is not None,
            "unseal": self.state.compactor.unseal,
        }
        return {**arguments, **next_id(previous)}

    async def save(self, turn: Turn, answer: dict[str, Any]) -> None:
        asked = responses.request_of(turn)
        if asked.conversation is not None and answer["status"] in FINAL_STATUSES:
            await self._extend(asked.conversation, [*asked.items, *answer["output"]])
        if not asked.store or self._store is None:
            return
        await self._keep(self._stored(turn, answer))

    def _stored(self, turn: Turn, answer: dict[str, Any]) -> StoredResponse:
        asked = responses.request_of(turn)
        return StoredResponse(turn.id, self._owner, asked.previous, answer, asked.items)

    async def _keep(self, stored: StoredResponse) -> None:
        assert self._store is not None
        try:
            await self._store.save(stored)
            self._is_kept = True
        except ResponseStoreError as error:
            log.warning("request %s: its response is not kept: %s", self._request, error)

    async def save_stream(self, turn: Turn, encoder: StreamEncoder) -> None:
        assert isinstance(encoder, responses.Encoder)
        if encoder.response is not None:
            await self.save(turn, encoder.response)

    def record_stream(self, turn: Turn, encoder: StreamEncoder) -> None:
        if responses.request_of(turn).store and self._store is not None:
            assert isinstance(encoder, responses.Encoder)
            encoder.log = self.state.stream_recorder.begin()
            request_context.stack().callback(self._on_stream_end, turn, encoder, encoder.log)

    def _on_stream_end(self, turn: Turn, encoder: responses.Encoder, frames: responses.FrameLog) -> None:
        """Save the events of a stream that completed or whose client disconnected."""
        cancelled = None
        if encoder.cancel():
            assert encoder.last_response is not None
            cancelled = self._stored(turn, encoder.last_response)
        recorder, runs = self.state.stream_recorder, self.state.response_runs
        if encoder.log is None or runs is None or not (self._is_kept or cancelled):
            recorder.discard(frames)
        else:
            assert self._store is not None
            recorder.add(EndedStream(self._owner, turn.id, frames, runs, self._store, cancelled))

    def is_background(self, turn: Turn) -> bool:
        return responses.request_of(turn).background

    async def run(
        self, turn: Turn, encoder: StreamEncoder, start: StartResponse, in_flight: InFlightRequest
    ) -> HTTPResponse:
        state, context = self.state, request_context.current()
        assert isinstance(encoder, responses.Encoder)
        assert state.responses is not None
        assert state.response_runs is not None
        clients = ClientResponses(state, self._owner)
        run = BackgroundRun(
            self._owner,
            turn.id,
            store=state.response_runs,
            encoder=encoder,
            in_flight=in_flight,
            start=start,
            save=partial(self.save, turn),
            delete=partial(clients.delete, turn.id),
        )
        queued = responses.queued_response(turn)
        state.background_runs.add(run, state.request_limits.max_background_responses)
        try:
            await state.responses.save(self._stored(turn, queued))
            await run.queue()
        except BaseException:
            state.background_runs.remove(run)
            raise
        if state.body_logger:
            run.log_to(context.stack.enter_context(closing(state.body_logger.streaming(context.record))))
        state.background_runs.start(run, context)
        if responses.request_of(turn).streams:
            return await clients.stream(turn.id, -1)
        return json_response(queued)

    async def _extend(self, conversation: str, items: list[Item]) -> None:
        """Append a response's input and output to its conversation."""
        if self.state.conversations is None:
            return
        try:
            await self.state.conversations.append(self._owner, conversation, items)
        except (ConversationNotFound, ResponseStoreError, RequestError) as error:
            log.warning("request %s: its items are not in the conversation: %s", self._request, error)


def next_id(previous: str | None) -> dict[str, str]:
    """Return the id of the response that continues another one, if it depends on that one's."""
    root = None if previous is None else responses.response_root(previous)
    return {} if root is None else {"id": f"resp_{root}{secrets.token_hex(8)}"}


async def _conversation_items(store: ConversationStore | None, owner: str, id: str) -> list[Item]:
    """Return the items of a conversation. Raises RequestError if it does not exist."""
    try:
        return (
            conversation_not_found(id, param="conversation")
            if store is None
            else await store.items(owner, id)
        )
    except ConversationNotFound:
        conversation_not_found(id, param="conversation")


class CompactionHistory(ResponseHistory):
    """The stored state of one `POST /v1/responses/compact`, which is not stored itself."""

    async def save(self, turn: Turn, answer: dict[str, Any]) -> None:
        """Save nothing."""


HISTORIES = {"/responses": ResponseHistory, "/responses/compact": CompactionHistory}
"""The histories of the endpoints with stored responses, by path."""


async def _previous_items(store: ResponseStore | None, owner: str, previous: str) -> list[Item]:
    """Return the items of a conversation. Raise RequestError with OpenAI's message if it does not exist."""
    try:
        if store is None:
            raise ResponseNotFound(previous)
        chain = await store.conversation(owner, previous)
    except ResponseNotFound as missing:
        message = f"Previous response with id {missing.id[:100]!r} not found."
        if store is None:
            message += " This server stores no responses."
        raise RequestError(
            message, param="previous_response_id", code="previous_response_not_found"
        ) from None
    if chain[-1].response["status"] not in FINAL_STATUSES:
        status = chain[-1].response["status"]
        message = f"Previous response with id {previous[:100]!r} is {status}: it cannot be continued."
        raise RequestError(message, param="previous_response_id", code="previous_response_not_found")
    return [item for stored in chain for item in stored.conversation()]


class ResponseRoutes:
    """The views of a stored response, and their routes."""

    def __init__(self, server: StateHolder) -> None:
        self._server = server

    def routes(self) -> Iterator[Route]:
        yield Route("/responses/<id>", ("GET",), self._get, api=OPENAI, streams=True)
        yield Route("/responses/<id>", ("DELETE",), self._delete, api=OPENAI)
        yield Route("/responses/<id>/input_items", ("GET",), self._input_items, api=OPENAI)
        yield Route("/responses/<id>/cancel", ("POST",), self._cancel, api=OPENAI)

    async def _get(self, id: str) -> HTTPResponse:
        if request.args.get("stream") in ("true", "1"):
            after = responses.starting_after(request.args.get("starting_after"))
            return await self._responses().stream(id, after)
        response = (await self._responses().find(id)).response
        include = include_query()
        return json_response({**response, "output": responses.include_fields(response["output"], include)})

    async def _delete(self, id: str) -> HTTPResponse:
        await self._responses().delete(id)
        return json_response({"id": id, "object": "response", "deleted": True})

    async def _input_items(self, id: str) -> HTTPResponse:
        """Return the model's input: the conversation before the response, and the request's own items."""
        stored = await self._responses().find(id)
        try:
            chain = await self._responses().store(id).conversation(client_owner(), id)
        except ResponseNotFound:  # an earlier response of the conversation was deleted
            chain = [stored]
        before = [item for earlier in chain[:-1] for item in earlier.conversation()]
        items = responses.include_fields([*before, *stored.items], include_query())
        return json_response(responses.list_page(items, **page_query()))

    async def _cancel(self, id: str) -> HTTPResponse:
        return json_response((await self._responses().cancel(id)).response)

    def _responses(self) -> ClientResponses:
        return ClientResponses(self._server.state, client_owner())
