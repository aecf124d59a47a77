"""Stored responses for all processes of all machines: sealed, and a conversation in one hash.

A response's id begins with digits that its conversation has in common, so that a conversation is read in one
command for each 256 KiB. All of it ends `max_age` after its last use. Responses that this machine stored
before are found in its own store; the digits of their ids are their own.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import Any

from qproxy.backends.redis.client import RedisClient
from qproxy.backends.redis.connection import Argument
from qproxy.backends.redis.records import OWNERS, SealedRecords
from qproxy.backends.redis.script import Script, load_script
from qproxy.backends.redis.sealing import Sealer
from qproxy.server.response_store import (
    ResponseNotFound,
    ResponseStore,
    ResponseStoreError,
    StoredResponse,
    StoreStatistics,
)
from qproxy.wire.endpoints.responses import response_root
from qproxy.wire.errors import RequestError

RESPONSES = load_script("responses")
TOUCH_SECONDS = 3600
"""Accuracy of the time of the last use."""
STEP_BYTES = 256 * 1024
"""Of a conversation in one reply."""
MAX_CONVERSATION = 64 * 1024 * 1024
"""Bytes of the sealed responses of a conversation, and of a chain of them when it is read."""
_ID = re.compile(r"[A-Za-z0-9_-]{1,100}")


class RedisResponses:
    """The store; without the server, what this machine stored before can be read."""

    def __init__(
        self,
        client: RedisClient,
        sealer: Sealer,
        local: ResponseStore,
        *,
        max_age: float,
        max_bytes: int,
        scripts: Sequence[Script] = (RESPONSES, OWNERS),
    ) -> None:
        """`max_bytes` bounds one response, as it is stored; `local` is this machine's own store."""
        self._records = SealedRecords(client, sealer, "r", *scripts)
        self._local = local
        self._max_age = max_age
        self._max_bytes = max_bytes
        self._saved = 0

    def __repr__(self) -> str:
        return f"<RedisResponses {self._records!r}, {self._saved} saved>"

    def statistics(self) -> StoreStatistics:
        local = self._local.statistics()
        return StoreStatistics(self._saved, self._records.failed + local.failed, local.discarded)

    async def save(self, stored: StoredResponse) -> None:
        owner, id, previous = stored.owner, stored.id, stored.previous_id or ""
        content = {"previous": previous, "response": stored.response, "items": stored.items}
        body = await self._records.seal_json(content, self._name(owner, id))
        if len(body) > self._max_bytes:
            raise self._records.fail(
                f"the response has {len(body)} bytes when stored (shared_response_max_bytes)"
            )
        if previous and _root(previous) == _root(id):
            self._records.renew_name(owner, _root(id), self._max_age)
        else:
            await self._records.add_name(owner, _root(id), self._max_age)
        if not await self._run("save", owner, id, previous, body, MAX_CONVERSATION):
            raise self._records.fail(f"the conversation is larger than {MAX_CONVERSATION // 1024**2} MiB")
        self._saved += 1

    async def get(self, owner: str, id: str) -> StoredResponse:
        try:
            found = await self._run("get", owner, id)
        except ResponseStoreError as error:
            try:
                return await self._local.get(owner, id)
            except ResponseNotFound:
                raise error from None
        if not found:
            return await self._local.get(owner, id)
        return (await self._open(owner, id, found))[0][0]

    async def conversation(self, owner: str, id: str) -> list[StoredResponse]:
        chain: list[StoredResponse] = []
        size = 0
        wanted: str | None = id
        while wanted is not None:
            part, part_size = await self._end_of(owner, wanted)
            size += part_size
            if size > MAX_CONVERSATION:
                message = f"The conversation is larger than {MAX_CONVERSATION // 1024**2} MiB."
                raise RequestError(message, param="previous_response_id", code="context_length_exceeded")
            chain += part
            wanted = part[-1].previous_id or None
        return chain[::-1]

    async def delete(self, owner: str, id: str) -> None:
        deleted = await self._run("delete", owner, id)
        try:
            await self._local.delete(owner, id)
        except ResponseNotFound:
            if not deleted:
                raise

    async def delete_owner(self, owner: str) -> int:
        shared = await self._records.delete_owner(owner, lambda root: self._records.run(owner, root, "clear"))
        return shared + await self._local.delete_owner(owner)

    async def aclose(self) -> None:
        await self._local.aclose()

    async def _end_of(self, owner: str, id: str) -> tuple[list[StoredResponse], int]:
        """Return the end of a conversation from its last response, as much as one reply has; and its size."""
        try:
            reply = await self._run("walk", owner, id, TOUCH_SECONDS, STEP_BYTES)
        except ResponseStoreError as error:
            try:
                return (await self._local.conversation(owner, id))[::-1], 0
            except ResponseNotFound:
                raise error from None
        if not reply:
            return (await self._local.conversation(owner, id))[::-1], 0
        return await self._open(owner, id, reply)

    async def _open(self, owner: str, id: str, reply: Sequence[bytes]) -> tuple[list[StoredResponse], int]:
        """Return a response and those before it, whose ids and bodies a reply has; and their size."""
        previous = [name.decode() for name in reply[::2]]
        ids = [id, *previous[:-1]]
        names = [self._name(owner, each) for each in ids]
        contents, size = await self._records.open_json(*zip(names, reply[1::2], strict=True))
        if [content["previous"] for content in contents] != previous:
            raise self._records.fail(f"the order of the responses before {id} was changed there")
        stored = [
            StoredResponse(each, owner, content["previous"] or None, content["response"], content["items"])
            for each, content in zip(ids, contents, strict=True)
        ]
        return stored, size

    async def _run(self, action: str, owner: str, id: str, *arguments: Argument) -> Any:
        """Run the script on a response; one whose id is none of a response does not exist."""
        if not _ID.fullmatch(id):
            raise ResponseNotFound(id)
        return await self._records.run(owner, _root(id), action, self._max_age, id, *arguments)

    def _name(self, owner: str, id: str) -> str:
        return f"{self._records.key(owner, _root(id))}:{id}"


def _root(id: str) -> str:
    """Return the digits that the responses of a conversation have in common."""
    return response_root(id) or hashlib.sha256(id.encode()).hexdigest()[:8]
