"""Conversations for all processes of all machines: each is one hash, whose items and metadata are sealed.

A conversation ends `max_age` after its last use. One that this machine stored before is found, and goes on,
in its own store.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

from qproxy.backends.redis.client import RedisClient
from qproxy.backends.redis.connection import Argument
from qproxy.backends.redis.records import OWNERS, SealedRecords
from qproxy.backends.redis.script import Script, load_script
from qproxy.backends.redis.sealing import Sealer
from qproxy.server.conversation_store import (
    JSON,
    Conversation,
    ConversationNotFound,
    ConversationStore,
    ItemNotFound,
)
from qproxy.wire.errors import RequestError

T = TypeVar("T")
CONVERSATIONS = load_script("conversations")
STEP_BYTES = 256 * 1024
"""Of the items in one reply."""
MAX_CONVERSATION = 64 * 1024 * 1024
"""Bytes of the sealed items of a conversation."""
_ID = re.compile(r"[A-Za-z0-9_-]{1,100}")


class RedisConversations:
    """The store."""

    def __init__(
        self,
        client: RedisClient,
        sealer: Sealer,
        local: ConversationStore,
        *,
        max_age: float,
        scripts: Sequence[Script] = (CONVERSATIONS, OWNERS),
    ) -> None:
        """`local` is this machine's own store."""
        self._records = SealedRecords(client, sealer, "c", *scripts)
        self._local = local
        self._max_age = max_age

    def __repr__(self) -> str:
        return f"<RedisConversations {self._records!r}>"

    async def create(self, conversation: Conversation, items: Sequence[JSON]) -> None:
        owner, id = conversation.owner, conversation.id
        metadata = await self._seal(owner, id, "", dict(conversation.metadata))
        arguments = (
            conversation.created,
            metadata,
            MAX_CONVERSATION,
            *await self._seal_items(owner, id, items),
        )
        await self._records.add_name(owner, id, self._max_age)
        _check_size(await self._run("create", owner, id, *arguments))

    async def get(self, owner: str, id: str) -> Conversation:
        return await self._first(self._get(owner, id), lambda: self._local.get(owner, id))

    async def update(self, owner: str, id: str, metadata: Mapping[str, str]) -> Conversation:
        return await self._first(
            self._update(owner, id, metadata), lambda: self._local.update(owner, id, metadata)
        )

    async def delete(self, owner: str, id: str) -> None:
        await self._first(self._run("delete", owner, id), lambda: self._local.delete(owner, id))

    async def append(self, owner: str, id: str, items: Sequence[JSON]) -> None:
        await self._first(self._append(owner, id, items), lambda: self._local.append(owner, id, items))

    async def items(self, owner: str, id: str) -> list[JSON]:
        return await self._first(self._items(owner, id), lambda: self._local.items(owner, id))

    async def delete_item(self, owner: str, id: str, item: str) -> None:
        await self._first(
            self._delete_item(owner, id, item), lambda: self._local.delete_item(owner, id, item)
        )

    async def delete_owner(self, owner: str) -> int:
        def delete(id: str) -> Awaitable[int]:
            return self._records.run(owner, id, "delete", self._max_age)

        return await self._records.delete_owner(owner, delete) + await self._local.delete_owner(owner)

    async def aclose(self) -> None:
        await self._local.aclose()

    async def _first(self, shared: Awaitable[T], local: Callable[[], Awaitable[T]]) -> T:
        """Return the outcome on the server or, for a conversation that is not there, on this machine."""
        try:
            return await shared
        except ConversationNotFound as missing:
            if not _ID.fullmatch(missing.id):
                raise
            return await local()

    async def _get(self, owner: str, id: str) -> Conversation:
        created, metadata = await self._run("get", owner, id)
        (opened,), _ = await self._records.open_json((self._name(owner, id, ""), metadata))
        return Conversation(id, owner, int(created), opened)

    async def _update(self, owner: str, id: str, metadata: Mapping[str, str]) -> Conversation:
        await self._run("update", owner, id, await self._seal(owner, id, "", dict(metadata)))
        return await self._get(owner, id)

    async def _append(self, owner: str, id: str, items: Sequence[JSON]) -> None:
        sealed = await self._seal_items(owner, id, items)
        outcome = await self._run("append", owner, id, MAX_CONVERSATION, *sealed)
        self._records.renew_name(owner, id, self._max_age)
        _check_size(outcome)

    async def _items(self, owner: str, id: str) -> list[JSON]:
        found: list[JSON] = []
        place, size = 1, 0
        while place:
            place, *reply = await self._run("items", owner, id, place, STEP_BYTES)
            sealed = zip(reply[::2], reply[1::2], strict=True)
            items, items_size = await self._records.open_json(
                *((self._name(owner, id, name.decode()), item) for name, item in sealed)
            )
            found += items
            size += items_size
            if size > MAX_CONVERSATION:
                raise self._records.fail(f"the conversation is larger than {MAX_CONVERSATION // 1024**2} MiB")
        return found

    async def _delete_item(self, owner: str, id: str, item: str) -> None:
        if await self._run("remove", owner, id, _item_name(item)) < 0:
            raise ItemNotFound(item)

    async def _run(self, action: str, owner: str, id: str, *arguments: Argument) -> Any:
        """Return the script's reply. Raises ConversationNotFound."""
        found = _ID.fullmatch(id) and await self._records.run(owner, id, action, self._max_age, *arguments)
        if not found:
            raise ConversationNotFound(id)
        return found

    async def _seal_items(self, owner: str, id: str, items: Sequence[JSON]) -> list[Argument]:
        found: list[Argument] = []
        for item in items:
            name = _item_name(item["id"])
            found += [name, await self._seal(owner, id, name, item)]
        return found

    async def _seal(self, owner: str, id: str, name: str, value: JSON) -> bytes:
        return await self._records.seal_json(value, self._name(owner, id, name))

    def _name(self, owner: str, id: str, item: str) -> str:
        return f"{self._records.key(owner, id)}:{item}"


def _item_name(id: str) -> str:
    """Return an item's name on the server: ids are clients' texts."""
    return hashlib.sha256(id.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _check_size(outcome: int) -> None:
    if outcome < 0:
        message = f"The conversation would be larger than {MAX_CONVERSATION} bytes: start another one."
        raise RequestError(message, param="items", code="conversation_too_large")
