"""Stored chat completions: saved for requests with `store`, listed, read, changed and deleted.

A completion belongs to its client's API key, by the full digest. A request without `store` keeps nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from typing import Any, NoReturn

from quart import request

from qproxy.server import request_context
from qproxy.server.completion_store import (
    CompletionNotFound,
    CompletionQuery,
    CompletionStore,
    StoredCompletion,
)
from qproxy.server.http_response import HTTPResponse, json_response
from qproxy.server.request_body import read_json
from qproxy.server.response_store import ResponseStoreError
from qproxy.server.routes.generate import NoHistory
from qproxy.server.routes.stored_items import client_owner, page_query
from qproxy.server.state import Route, ServerState, StateHolder
from qproxy.wire.endpoints import OPENAI, StreamEncoder, chat_completion, responses, validation
from qproxy.wire.endpoints.request_schemas import object_schema
from qproxy.wire.endpoints.responses import conversations
from qproxy.wire.errors import QproxyError, RequestError
from qproxy.wire.events import Event, StreamFailed, Turn

log = logging.getLogger("qproxy.server")
CHAT_PATH = "/chat/completions"
SCHEMA = object_schema(["metadata"], {"metadata": {"type": "object"}})


class RecordingEncoder(StreamEncoder):
    """An encoder that keeps the events of a stream for its stored completion."""

    def __init__(self, encoder: StreamEncoder) -> None:
        self._encoder = encoder
        self.events: list[Event] = []

    def feed(self, event: Event) -> Iterable[bytes]:
        self.events.append(event)
        return self._encoder.feed(event)

    def close(self) -> Iterable[bytes]:
        return self._encoder.close()

    def error_event(self, error: QproxyError) -> bytes:
        return self._encoder.error_event(error)


class CompletionHistory(NoHistory):
    """Stores the completion of one `POST /v1/chat/completions`."""

    def __init__(self, state: ServerState) -> None:
        super().__init__(state)
        self._store = state.completions
        self._owner = client_owner()
        self._request = request_context.record().id
        self._messages: list[Any] = []

    async def load(self, body: Any) -> dict[str, Any]:
        """Return whether the completion is stored; its messages are kept for as long as the request."""
        wanted = self._store is not None and isinstance(body, dict) and body.get("store") is True
        if wanted and isinstance(body.get("messages"), list):
            self._messages = body["messages"]
        return {"stores": True} if wanted else {}

    def encoder(self, turn: Turn, encoder: StreamEncoder) -> StreamEncoder:
        return RecordingEncoder(encoder) if self._messages else encoder

    async def save(self, turn: Turn, answer: dict[str, Any]) -> None:
        if self._store is None or not self._messages:
            return
        metadata = {str(name): str(value) for name, value in (turn.params.get("metadata") or {}).items()}
        stored = StoredCompletion(
            answer["id"], self._owner, answer["model"], metadata, answer, self._messages
        )
        try:
            await self._store.save(stored)
        except ResponseStoreError as error:
            log.warning("request %s: its completion is not stored (%s)", self._request, error)

    async def save_stream(self, turn: Turn, encoder: StreamEncoder) -> None:
        if not isinstance(encoder, RecordingEncoder):
            return
        if not any(isinstance(event, StreamFailed) for event in encoder.events):
            await self.save(turn, chat_completion.response(turn, encoder.events))


class StoredCompletionRoutes:
    """The views of stored completions, and their routes."""

    def __init__(self, server: StateHolder) -> None:
        self._server = server

    def routes(self) -> Iterator[Route]:
        one = f"{CHAT_PATH}/<id>"
        yield Route(CHAT_PATH, ("GET",), self._list, api=OPENAI)
        yield Route(one, ("GET",), self._get, api=OPENAI)
        yield Route(one, ("POST",), self._update, api=OPENAI, schema=SCHEMA)
        yield Route(one, ("DELETE",), self._delete, api=OPENAI)
        yield Route(f"{one}/messages", ("GET",), self._list_messages, api=OPENAI)

    async def _list(self) -> HTTPResponse:
        query = _query()
        store, found, more = self._server.state.completions, list[StoredCompletion](), False
        if store is not None:
            try:
                found, more = await store.page(client_owner(), query)
            except CompletionNotFound as error:
                _not_found(error.id, param="after")
        return json_response(
            {
                "object": "list",
                "data": [completion.to_json() for completion in found],
                "first_id": found[0].id if found else "",
                "last_id": found[-1].id if found else "",
                "has_more": more,
            }
        )

    async def _get(self, id: str) -> HTTPResponse:
        return json_response((await self._find(id)).to_json())

    async def _update(self, id: str) -> HTTPResponse:
        state = self._server.state
        body = await read_json(state.request_limits, state.body_logger)
        metadata = conversations.decode_metadata(body, required=True)
        try:
            stored = await self._store(id).update(client_owner(), id, metadata)
        except CompletionNotFound:
            _not_found(id)
        return json_response(stored.to_json())

    async def _delete(self, id: str) -> HTTPResponse:
        try:
            await self._store(id).delete(client_owner(), id)
        except CompletionNotFound:
            _not_found(id)
        return json_response({"id": id, "object": "chat.completion.deleted", "deleted": True})

    async def _list_messages(self, id: str) -> HTTPResponse:
        stored = await self._find(id)
        messages = [_message(id, number, message) for number, message in enumerate(stored.messages)]
        return json_response(responses.list_page(messages, **{"order": "asc", **page_query()}))

    def _store(self, id: str) -> CompletionStore:
        store = self._server.state.completions
        return _not_found(id) if store is None else store

    async def _find(self, id: str) -> StoredCompletion:
        try:
            return await self._store(id).get(client_owner(), id)
        except CompletionNotFound:
            _not_found(id)


def _not_found(id: str, *, param: str | None = None) -> NoReturn:
    message = f"Chat completion with id {id[:100]!r} not found; it is stored with 'store': true only."
    raise RequestError(message, status=404, param=param)


def _query() -> CompletionQuery:
    """Return the parameters of the current request; filters of metadata are `metadata[NAME]`."""
    args = request.args
    metadata = {
        name[len("metadata[") : -1]: value
        for name, value in args.items()
        if name.startswith("metadata[") and name.endswith("]")
    }
    limit = args.get("limit", "20")
    if not limit.isascii() or not limit.isdecimal() or not 1 <= int(limit[:9]) <= 100:
        validation.wrong_value("limit", f"expected an integer from 1 to 100, but got {limit[:40]!r}.")
    order = validation.one_of(("asc", "desc"))(args.get("order", "asc"), "order")
    return CompletionQuery(int(limit), args.get("after"), order == "desc", args.get("model"), metadata)


def _message(id: str, number: int, message: dict[str, Any]) -> dict[str, Any]:
    """Return a message with an id; content parts stand beside the content."""
    content = message.get("content")
    parts = content if isinstance(content, list) else None
    found = {name: value for name, value in message.items() if name != "content"}
    text = None if parts is not None else content
    return {"id": f"{id}-{number}", **found, "content": text, "content_parts": parts}
