"""Records of owners on a server: deflated, sealed, and found again by their owner.

A server sees names that are digests, sizes and times. What an owner has of one kind is listed in a set, so
that all of it can be deleted; its entry is written first and outlasts the record.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import trio

from qproxy.backends.redis.client import RedisClient
from qproxy.backends.redis.connection import Argument
from qproxy.backends.redis.errors import RedisError
from qproxy.backends.redis.script import Script, load_script
from qproxy.backends.redis.sealing import Sealer, SealError
from qproxy.server.response_store import ResponseStoreError
from qproxy.wire import json_codec

T = TypeVar("T")
JSON = Any
OWNERS = load_script("owners")
LARGE = 64 * 1024
"""Bytes that are deflated or encrypted in a thread; fewer take less than a millisecond."""
MAX_RECORD = 64 * 1024 * 1024
"""Bytes of a record that is inflated."""
LIST_AGES = 2
"""How many times as long as a record an owner's list keeps its name."""


class RecordCipher:
    """Deflates and seals, in a thread where that takes long."""

    def __init__(self, sealer: Sealer) -> None:
        self._sealer = sealer

    def __repr__(self) -> str:
        return "<RecordCipher>"

    async def seal(self, data: bytes, name: str) -> bytes:
        """Return data as it is stored under a name."""
        if len(data) < LARGE:
            return self._seal(data, name)
        return await trio.to_thread.run_sync(self._seal, data, name)

    async def open(self, *sealed: tuple[str, bytes]) -> list[bytes]:
        """Return the data that was stored under some names. Raises SealError."""
        if sum(len(data) for _, data in sealed) < LARGE:
            return self._open(sealed)
        return await trio.to_thread.run_sync(self._open, sealed)

    def _seal(self, data: bytes, name: str) -> bytes:
        return self._sealer.seal(zlib.compress(data, 1), name)

    def _open(self, sealed: Sequence[tuple[str, bytes]]) -> list[bytes]:
        try:
            return [
                zlib.decompressobj().decompress(self._sealer.open(data, name), MAX_RECORD)
                for name, data in sealed
            ]
        except zlib.error as error:
            raise SealError(f"a record cannot be inflated: {error}") from None


class SealedRecords:
    """The records of one kind."""

    def __init__(
        self, client: RedisClient, sealer: Sealer, kind: str, script: Script, owners: Script
    ) -> None:
        """`kind` is part of the keys; `script` runs on one record."""
        self.client = client
        self.failed = 0
        """Operations that failed."""
        self._cipher = RecordCipher(sealer)
        self._kind = kind
        self._script = script
        self._owners = owners

    def __repr__(self) -> str:
        return f"<SealedRecords {self._kind} {self.client!r}>"

    def key(self, owner: str, name: str) -> str:
        """Return the key of an owner's record; records of one name are on one server of a cluster."""
        return f"{self.client.prefix}:{{{self._kind}:{_digest(owner)}:{name}}}"

    async def run(self, owner: str, name: str, *arguments: Argument) -> Any:
        """Return the script's reply for a record. Raises ResponseStoreError."""
        return await self._map_errors(self.client.run_script(self._script, self.key(owner, name), *arguments))

    async def add_name(self, owner: str, name: str, max_age: float) -> None:
        """List a record under its owner. Raises ResponseStoreError."""
        arguments = (name, f"{LIST_AGES * max_age:.0f}")
        await self._map_errors(self.client.run_script(self._owners, self._list_key(owner), *arguments))

    def renew_name(self, owner: str, name: str, max_age: float) -> None:
        """Keep a name in an owner's list, without waiting: it outlasts the record by far."""
        command = (self._owners, self._list_key(owner), name, f"{LIST_AGES * max_age:.0f}")
        with suppress(RedisError):
            self.client.send(self.client.script_command(*command), lambda reply: None)

    async def delete_owner(self, owner: str, delete: Callable[[str], Awaitable[int]]) -> int:
        """Delete every record of an owner with `delete`, and return the sum. Raises ResponseStoreError."""
        key, count = self._list_key(owner), 0
        for name in await self._map_errors(self.client.request("ZRANGE", key, 0, -1)):
            count += await delete(name.decode())
            await self._map_errors(self.client.request("ZREM", key, name))
        return count

    async def seal(self, data: bytes, name: str) -> bytes:
        """Return data as it is stored under a name."""
        return await self._cipher.seal(data, name)

    async def open(self, *sealed: tuple[str, bytes]) -> list[bytes]:
        """Return the data that was stored under some names. Raises ResponseStoreError."""
        try:
            return await self._cipher.open(*sealed)
        except SealError as error:
            raise self.fail(error) from None

    async def seal_json(self, value: JSON, name: str) -> bytes:
        """Return a value as it is stored under a name."""
        return await self.seal(json_codec.dumps(value), name)

    async def open_json(self, *sealed: tuple[str, bytes]) -> tuple[list[JSON], int]:
        """Return the values that were stored under some names, and their size. Raises ResponseStoreError."""
        found = await self.open(*sealed)
        try:
            return [json_codec.loads(data) for data in found], sum(map(len, found))
        except ValueError as error:
            raise self.fail(error) from None

    def fail(self, reason: object) -> ResponseStoreError:
        """Count a failure, and return its error."""
        self.failed += 1
        return ResponseStoreError(f"The shared state cannot be used (shared_state): {reason}.")

    async def _map_errors(self, call: Awaitable[T]) -> T:
        try:
            return await call
        except RedisError as error:
            raise self.fail(error) from None

    def _list_key(self, owner: str) -> str:
        return f"{self.client.prefix}:{{{self._kind}:{_digest(owner)}}}"


def _digest(owner: str) -> str:
    """Return an owner's name on the server; it does not lead back to the key's own digest."""
    return hashlib.sha256(b"owner\0" + owner.encode()).hexdigest()[:32]
