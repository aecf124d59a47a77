"""Conversations: created, extended, read and deleted; `POST /v1/responses` continues and extends them too.

A conversation belongs to its client's API key, by the full digest; for another key it does not exist.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Collection, Iterator
from functools import partial
from typing import Any, NoReturn

from qproxy.server import request_context
from qproxy.server.conversation_store import (
    Conversation,
    ConversationNotFound,
    ConversationStore,
    ItemNotFound,
)
from qproxy.server.http_response import HTTPResponse, json_response
from qproxy.server.request_body import read_json
from qproxy.server.request_files import resolve_files
from qproxy.server.routes.stored_items import client_owner, include_query, load_items, page_query
from qproxy.server.state import Route, StateHolder
from qproxy.wire.endpoints import OPENAI, responses
from qproxy.wire.endpoints.file_parts import UnresolvedFile
from qproxy.wire.endpoints.responses import conversations
from qproxy.wire.errors import RequestError

Item = dict[str, Any]


def conversation_not_found(id: str, *, param: str | None = None) -> NoReturn:
    raise RequestError(f"Conversation with id {id[:100]!r} not found.", status=404, param=param)


class ConversationRoutes:
    """The views of conversations and their items, and their routes."""

    def __init__(self, server: StateHolder) -> None:
        self._server = server

    def routes(self) -> Iterator[Route]:
        one, items, item = (
            "/conversations/<id>",
            "/conversations/<id>/items",
            "/conversations/<id>/items/<item>",
        )
        schemas = conversations
        yield Route("/conversations", ("POST",), self._create, api=OPENAI, schema=schemas.CREATE_SCHEMA)
        yield Route(one, ("GET",), self._get, api=OPENAI)
        yield Route(one, ("POST",), self._update, api=OPENAI, schema=schemas.UPDATE_SCHEMA)
        yield Route(one, ("DELETE",), self._delete, api=OPENAI)
        yield Route(items, ("GET",), self._list_items, api=OPENAI)
        yield Route(items, ("POST",), self._add_items, api=OPENAI, schema=schemas.ITEMS_SCHEMA)
        yield Route(item, ("GET",), self._get_item, api=OPENAI)
        yield Route(item, ("DELETE",), self._delete_item, api=OPENAI)

    async def _create(self) -> HTTPResponse:
        state = self._server.state
        if state.conversations is None:
            raise RequestError(
                "This server stores no conversations (store_responses).", code="unsupported_parameter"
            )
        body = await self._body()
        metadata, items = conversations.decode_metadata(body), await self._decode_items(body)
        id_ = "conv_" + secrets.token_hex(24)
        created = Conversation(id_, client_owner(), int(time.time()), metadata)
        await state.conversations.create(created, items)
        return _conversation_response(created)

    async def _get(self, id: str) -> HTTPResponse:
        return _conversation_response(await self._find(id))

    async def _update(self, id: str) -> HTTPResponse:
        metadata = conversations.decode_metadata(await self._body(), required=True)
        try:
            return _conversation_response(await self._store(id).update(client_owner(), id, metadata))
        except ConversationNotFound:
            conversation_not_found(id)

    async def _delete(self, id: str) -> HTTPResponse:
        try:
            await self._store(id).delete(client_owner(), id)
        except ConversationNotFound:
            conversation_not_found(id)
        return json_response({"id": id, "object": "conversation.deleted", "deleted": True})

    async def _list_items(self, id: str) -> HTTPResponse:
        items = responses.include_fields(await self._items(id), include_query())
        return json_response(responses.list_page(items, **page_query()))

    async def _add_items(self, id: str) -> HTTPResponse:
        before = {item["id"] for item in await self._items(id)}
        items = await self._decode_items(await self._body(), before, required=True)
        try:
            await self._store(id).append(client_owner(), id, items)
        except ConversationNotFound:  # deleted since
            conversation_not_found(id)
        return json_response(conversations.item_list(items))

    async def _get_item(self, id: str, item: str) -> HTTPResponse:
        found = next((one for one in await self._items(id) if one["id"] == item), None)
        if found is None:
            _item_not_found(id, item)
        return json_response(found)

    async def _delete_item(self, id: str, item: str) -> HTTPResponse:
        conversation = await self._find(id)
        try:
            await self._store(id).delete_item(client_owner(), id, item)
        except ConversationNotFound:
            conversation_not_found(id)
        except ItemNotFound:
            _item_not_found(id, item)
        return _conversation_response(conversation)

    async def _body(self) -> Any:
        return await read_json(self._server.state.request_limits, self._server.state.body_logger)

    async def _decode_items(
        self, body: Any, before: Collection[str] = (), *, required: bool = False
    ) -> list[Item]:
        """Return the items of a body; those left out are named in the response's headers."""
        state, owner = self._server.state, client_owner()
        known = await load_items(state.responses, owner, conversations.referenced_items(body))
        decode = partial(
            conversations.decode_items,
            source=f"resp_{secrets.token_hex(12)}",
            known=known,
            before=before,
            required=required,
            unseal=state.compactor.unseal,
        )
        try:
            items, ignored = decode(body)
        except UnresolvedFile:
            items, ignored = decode(await resolve_files(body, state.files, owner, state.request_limits))
        request_context.record().relay.ignored = tuple(ignored)
        return items

    def _store(self, id: str) -> ConversationStore:
        return self._server.state.conversations or conversation_not_found(id)

    async def _find(self, id: str) -> Conversation:
        try:
            return await self._store(id).get(client_owner(), id)
        except ConversationNotFound:
            conversation_not_found(id)

    async def _items(self, id: str) -> list[Item]:
        try:
            return await self._store(id).items(client_owner(), id)
        except ConversationNotFound:
            conversation_not_found(id)


def _conversation_response(conversation: Conversation) -> HTTPResponse:
    return json_response(
        conversations.conversation_object(conversation.id, conversation.created, conversation.metadata)
    )


def _item_not_found(id: str, item: str) -> NoReturn:
    message = f"Item with id {item[:100]!r} not found in the conversation {id[:100]!r}."
    raise RequestError(message, status=404)
