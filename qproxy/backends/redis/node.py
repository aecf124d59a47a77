"""The connection of a process to one server, renewed when it breaks.

A connection starts with one write: authentication, the database, the server's role, its start, the scripts.
Only a primary is used, and its role is asked for again with every sign of life. Commands of callers follow.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import trio

from qproxy.backends.redis.address import Address
from qproxy.backends.redis.connection import Argument, Connection, OnPush, OnReply, first_error
from qproxy.backends.redis.errors import RedisError, RedisUnavailable
from qproxy.backends.redis.reconnection import Reconnection
from qproxy.backends.redis.script import Script
from qproxy.backends.redis.statistics import Statistics

BEAT_SECONDS = 5.0
"""Between two signs of life, which also find a connection that is dead while nothing is sent."""
WRONG_KIND = {
    True: "the server is a member of a cluster: write redis+cluster:// in shared_state",
    False: "the server is no member of a cluster: write redis:// in shared_state",
}
OpenStream: TypeAlias = Callable[[], Awaitable[trio.abc.Stream]]


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """The identity of a server, as it reports it."""

    version: str
    run_id: str
    started_at: float
    """Unix seconds, by the server's clock; late by up to a second."""
    is_cluster: bool = False
    """Whether it is a member of a cluster."""


class Node:
    """One server, which `run` keeps connected."""

    def __init__(
        self,
        address: Address,
        *,
        process: str,
        scripts: Sequence[Script],
        connect_timeout: float,
        open_stream: OpenStream,
        on_change: Callable[[Node], None],
        statistics: Statistics,
    ) -> None:
        """`on_change` is called when the node has connected, and when it has failed."""
        self.address = address
        self.failure = "not connected yet"
        """Why there is no connection."""
        self.server: ServerInfo | None = None
        self.forgot_at = 0.0
        """When a server started that lacks what an earlier one had; 0 if none did."""
        self._process = process
        self._scripts = scripts
        self._connect_timeout = connect_timeout
        self._open_stream = open_stream
        self._on_change = on_change
        self._statistics = statistics
        self._connection: Connection | None = None
        self._reconnection = Reconnection()

    def __repr__(self) -> str:
        return f"<Node {self.address} {self._connection if self.is_connected else self.failure}>"

    @property
    def is_connected(self) -> bool:
        return self._connection is not None and not self._connection.closed

    def send(self, command: tuple[Argument, ...], on_reply: OnReply) -> None:
        """Send a command without waiting. Raises RedisUnavailable if there is no connection."""
        if self._connection is None or self._connection.closed:
            self._statistics.unavailable += 1
            raise RedisUnavailable(self.failure)
        self._connection.send(command, on_reply)

    async def run(self) -> None:
        """Stay connected until cancelled."""
        await self._reconnection.run(self._serve, self._fail)

    async def open_connection(self, on_push: OnPush = lambda message: None) -> Connection:
        """Return a new connection to the server, before its handshake. Raises RedisUnavailable."""
        try:
            with trio.fail_after(self._connect_timeout):
                stream = await self._open_stream()
        except trio.TooSlowError:
            limit = f"{self._connect_timeout:g} s (shared_state_connect_timeout)"
            raise RedisUnavailable(f"no connection within {limit}") from None
        except (OSError, trio.BrokenResourceError) as error:
            raise RedisUnavailable(f"no connection: {error}") from None
        return Connection(stream, timeout=self._connect_timeout, on_push=on_push)

    def _fail(self, error: RedisError) -> None:
        self.failure = str(error)
        self._reconnection.log(logging.ERROR, f"{self.address} cannot be used: {error}")
        self._on_change(self)

    async def _serve(self) -> None:
        """Connect, and return when the connection has ended. Raises a RedisError."""
        connection = await self.open_connection()
        connection.statistics = self._statistics
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(connection.run)
                self._start(connection, await self._shake_hands(connection))
                while True:
                    await trio.sleep(BEAT_SECONDS)
                    require_primary(await connection.request("ROLE"))
        except* RedisError as group:
            raise first_error(group) from None
        finally:
            self._connection = None

    async def _shake_hands(self, connection: Connection) -> ServerInfo:
        """Send all that starts a connection in one write. Raises a RedisError."""
        commands = authentication(self.address)
        commands += [("CLIENT", "SETNAME", f"qproxy-{self._process}"), ("ROLE",), ("INFO", "server")]
        commands += [("SCRIPT", "LOAD", script.text) for script in self._scripts]
        replies: dict[Argument, Any] = {}
        for command in commands:
            connection.send(command, partial(replies.__setitem__, command[0]))
        replies["TIME"] = await connection.request("TIME")
        require_primary(replies["ROLE"])
        server = parse_server_info(replies["INFO"], replies["TIME"])
        if server.is_cluster != self.address.is_cluster:
            raise RedisUnavailable(WRONG_KIND[server.is_cluster])
        return server

    def _start(self, connection: Connection, server: ServerInfo) -> None:
        if self.server is not None and self.server.run_id != server.run_id:
            self.forgot_at = server.started_at
        self._reconnection.log(logging.INFO, f"connected to {self.address} (version {server.version})")
        self.server, self._connection, self.failure = server, connection, "the connection was lost"
        self._on_change(self)


def authentication(address: Address) -> list[tuple[Argument, ...]]:
    """Return the commands that come first on a connection."""
    commands: list[tuple[Argument, ...]] = []
    if address.password:
        commands.append(("AUTH", address.user or "default", address.password))
    if address.database:
        commands.append(("SELECT", address.database))
    return commands


def require_primary(role: Any) -> None:
    """Raise RedisUnavailable unless a reply to ROLE is a primary's."""
    if role[0] != b"master":
        raise RedisUnavailable(f"the server is a {role[0].decode()}, not a primary")


def parse_server_info(info: bytes, time: Any) -> ServerInfo:
    """Return what INFO and TIME report."""
    fields = parse_info(info)
    version = fields.get("valkey_version") or fields.get("redis_version", "")
    started_at = int(time[0]) + int(time[1]) / 1e6 - int(fields.get("uptime_in_seconds", 0))
    mode = fields.get("server_mode") or fields.get("redis_mode", "")
    return ServerInfo(version, fields.get("run_id", ""), started_at, mode == "cluster")


def parse_info(info: bytes) -> dict[str, str]:
    """Return the fields of a reply to INFO."""
    lines = (line.partition(":") for line in info.decode(errors="replace").splitlines())
    return {name: value for name, colon, value in lines if colon}
