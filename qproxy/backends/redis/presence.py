"""This process among those that share a server: its signs of life, its schema, and the others.

A sorted set has the processes by their last signs of life, and a key each has their descriptions. The hash
`PREFIX:meta` has the newest schema that any process writes, and the oldest whose programs can read it: an
older program does not use the server.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any

import trio

from qproxy.backends.redis.connection import Argument, OnReply
from qproxy.backends.redis.errors import RedisError
from qproxy.backends.redis.node import BEAT_SECONDS
from qproxy.backends.redis.script import load_script, script_command
from qproxy.server.replicas import Replica, parse_replica

SCHEMA = 1
"""Of the keys that this program writes; their prefix has it."""
LEAST_READER = 1
"""The oldest schema whose programs can read what this one writes."""
MAX_LISTED = 1000
BEAT = load_script("processes")
META = load_script("meta")


class Presence:
    """The signs of life of one process."""

    def __init__(
        self,
        process: str,
        installation: str,
        *,
        schema: int,
        least_reader: int,
        send: Callable[[tuple[Argument, ...], OnReply], None],
        request: Callable[..., Awaitable[Any]],
        on_refusal: Callable[[str], None],
    ) -> None:
        """`send` and `request` are a client's; `on_refusal` gets the reason not to use the server."""
        self.processes = 1
        """Live processes, as of the last reply."""
        self.describe: Callable[[], str] | None = None
        """Returns the description of this process."""
        self.joined = trio.Event()
        """Set when the server has replied which schema it has."""
        self._process = process
        self._meta_key = f"{installation}:meta"
        self._processes_key = f"{installation}{schema}:processes"
        self._description_key = f"{installation}{schema}:process:"
        self._schema = schema
        self._least_reader = least_reader
        self._send = send
        self._request = request
        self._on_refusal = on_refusal

    def __repr__(self) -> str:
        return f"<Presence of {self._process}: {self.processes} processes>"

    def begin(self) -> None:
        """Record the schema of this process over a new connection."""
        with suppress(RedisError):  # its node logs what is wrong with a connection
            command = script_command(META, self._meta_key, self._schema, self._least_reader)
            self._send(command, self._check_schema)

    def _check_schema(self, reply: Any) -> None:
        if not isinstance(reply, list):
            return
        newest, least = reply
        self.joined.set()
        if self._schema < least:
            self._on_refusal(
                f"its data has schema {newest}, which a program of schema {least} can read, and this one has "
                f"schema {self._schema}: upgrade qproxy, or set another shared_state_prefix"
            )

    def beat(self) -> None:
        """Send a sign of life, if there is a connection."""
        with suppress(RedisError):
            self._send(script_command(BEAT, self._processes_key, self._process, BEAT_SECONDS), self._count)
            if self.describe is not None:
                key = self._description_key + self._process
                self._send(("SET", key, self.describe(), "EX", int(3 * BEAT_SECONDS)), _ignore)

    def _count(self, reply: Any) -> None:
        if isinstance(reply, int):
            self.processes = max(1, reply)

    async def end(self) -> None:
        """Remove this process from the live ones, if there is a connection."""
        with suppress(RedisError):
            self._send(("DEL", self._description_key + self._process), _ignore)
            await self._request("ZREM", self._processes_key, self._process)

    async def replicas(self) -> Sequence[Replica]:
        """Return the live processes that describe themselves. Raises a RedisError."""
        rows = await self._request("ZRANGE", self._processes_key, -MAX_LISTED, -1, "WITHSCORES")
        found: list[Replica] = []

        async def read(process: str, beat_at: float) -> None:
            with suppress(RedisError):
                text = await self._request("GET", self._description_key + process)
                replica = parse_replica(text, beat_at) if text else None
                if replica is not None:
                    found.append(replica)

        async with trio.open_nursery() as nursery:
            for process, score in zip(rows[::2], rows[1::2], strict=True):
                nursery.start_soon(read, process.decode(), float(score))
        return found


def _ignore(reply: Any) -> None:
    """Drop a reply; an error ends the connection, whose node logs it."""
