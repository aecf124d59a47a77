"""Small sealed values for a time after their last use, behind what each process remembers itself.

The name of a value is a tuple of clients' texts, and on the server a digest of them.

Nothing depends on them: while the server cannot be used, no value is there. A value is asked for once, and
renewed while a process uses its own copy of it, without waiting.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias

import trio

from qproxy.backends.redis.client import RedisClient
from qproxy.backends.redis.connection import Argument
from qproxy.backends.redis.errors import RedisError
from qproxy.backends.redis.records import RecordCipher
from qproxy.backends.redis.sealing import Sealer, SealError
from qproxy.wire import json_codec

Name: TypeAlias = tuple[Any, ...]
"""Hashable, and JSON."""
MAX_VALUE = 256 * 1024
"""Bytes of a value as it is stored; a larger one stays in its process."""
MAX_NAMES = 50_000
"""Names of which a process knows that they need no command; the oldest is forgotten."""
RENEWALS = 4
"""How often a value is renewed within the time that it is kept."""
ABSENT_SECONDS = 300.0
"""For which a name that has no value is not asked for again."""
log = logging.getLogger("qproxy.backends")


class SealedMemory:
    """The values of one kind."""

    def __init__(
        self,
        client: RedisClient,
        sealer: Sealer,
        kind: str,
        *,
        seconds: float,
        clock: Callable[[], float] = trio.current_time,
    ) -> None:
        """`kind` is part of the keys; `seconds` is how long a value is kept after its last use."""
        self._client = client
        self._cipher = RecordCipher(sealer)
        self._kind = kind
        self._seconds = seconds
        self._clock = clock
        self._absent_until: OrderedDict[Name, float] = OrderedDict()
        self._renewed_until: OrderedDict[Name, float] = OrderedDict()
        self._warned = False

    def __repr__(self) -> str:
        return f"<SealedMemory {self._kind} {self._client!r}>"

    async def save(self, name: Name, data: bytes) -> None:
        """Save a value, if the server can be used and the value is not too large."""
        key = self._key(name)
        sealed = await self._cipher.seal(data, key)
        if len(sealed) <= MAX_VALUE:
            self._absent_until.pop(name, None)
            self._set(self._renewed_until, name, self._seconds / RENEWALS)
            await self._request([("SET", key, sealed, "EX", self._expiry)])

    async def load(self, names: Sequence[Name]) -> dict[Name, bytes]:
        """Return the values that there are; names that had none lately have none."""
        names = [name for name in names if self._is_due(self._absent_until, name)]
        replies = await self._request([("GETEX", self._key(name), "EX", self._expiry) for name in names])
        found = {}
        for name, reply in zip(names, replies, strict=True):
            if isinstance(reply, RedisError):
                continue
            data = None if reply is None else await self._open(name, reply)
            if data is None:
                self._set(self._absent_until, name, min(self._seconds, ABSENT_SECONDS))
            else:
                self._set(self._renewed_until, name, self._seconds / RENEWALS)
                found[name] = data
        return found

    def renew(self, names: Sequence[Name]) -> None:
        """Keep values that this process has used from its own memory. Never waits."""
        for name in names:
            if self._is_due(self._renewed_until, name):
                self._set(self._renewed_until, name, self._seconds / RENEWALS)
                try:
                    self._client.send(("EXPIRE", self._key(name), self._expiry), lambda reply: None)
                except RedisError:
                    return

    async def _open(self, name: Name, sealed: bytes) -> bytes | None:
        try:
            return (await self._cipher.open((self._key(name), sealed)))[0]
        except SealError as error:
            if not self._warned:
                log.warning("shared state: %s", error)
            self._warned = True
            return None

    async def _request(self, commands: Sequence[tuple[Argument, ...]]) -> list[Any]:
        """Return the replies to commands that are sent together; a RedisError where there is none."""
        if not commands:
            return []
        replies: list[Any] = [RedisError("no reply")] * len(commands)
        done = trio.Event()
        left = len(commands)

        def receive(index: int, reply: Any) -> None:
            nonlocal left
            replies[index], left = reply, left - 1
            if not left:
                done.set()

        with trio.move_on_after(self._client.timeout):
            if self._client.is_starting:
                await self._client.wait_connected()
            for index, command in enumerate(commands):
                try:
                    self._client.send(command, partial(receive, index))
                except RedisError as error:
                    receive(index, error)
            await done.wait()
        return [*replies]

    def _is_due(self, table: OrderedDict[Name, float], name: Name) -> bool:
        return table.get(name, -math.inf) <= self._clock()

    def _set(self, table: OrderedDict[Name, float], name: Name, seconds: float) -> None:
        """Remember a name for some time."""
        table[name] = self._clock() + seconds
        table.move_to_end(name)
        if len(table) > MAX_NAMES:
            table.popitem(last=False)

    @property
    def _expiry(self) -> int:
        return max(1, round(self._seconds))

    def _key(self, name: Name) -> str:
        digest = hashlib.sha256(json_codec.dumps(name)).hexdigest()[:32]
        return f"{self._client.prefix}:{{{self._kind}:{digest}}}"
