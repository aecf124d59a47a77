"""The client of one Valkey or Redis server: one connection for all of a process, renewed when it breaks.

A connection starts with one write: authentication, the database, the server's role, its start, the scripts.
Only a primary is used. Commands of callers follow; `on_connect` sends again what had no reply before anything
new is sent.
"""

from __future__ import annotations

import logging
import secrets
import ssl
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import trio

from qproxy.backends.redis.address import Address
from qproxy.backends.redis.connection import Argument, Connection, OnPush, OnReply, first_error
from qproxy.backends.redis.errors import OutcomeUnknown, RedisError, RedisUnavailable
from qproxy.backends.redis.reconnection import Reconnection
from qproxy.backends.redis.script import Script, load_script

BEAT_SECONDS = 5.0
"""Between two signs of life, which also find a connection that is dead while nothing is sent."""
OpenStream: TypeAlias = Callable[[], Awaitable[trio.abc.Stream]]


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """The identity of a server, as it reports it."""

    version: str
    run_id: str
    started_at: float
    """Unix seconds, by the server's clock; late by up to a second."""


class RedisClient:
    """A client, which `run` keeps connected."""

    def __init__(
        self,
        address: Address,
        *,
        prefix: str,
        timeout: float,
        connect_timeout: float,
        scripts: Sequence[Script] = (),
        context: ssl.SSLContext | None = None,
        open_stream: OpenStream | None = None,
    ) -> None:
        """`timeout` bounds a `request`; `connect_timeout` a handshake, and the silence of a connection."""
        self.address = address
        self.process = secrets.token_hex(8)
        """Identifies this process on the server."""
        self.prefix = f"{prefix}1"
        """Of all keys; the number is the schema's."""
        self.timeout = timeout
        self.processes = 1
        """Live processes, as of the last beat."""
        self.server: ServerInfo | None = None
        self.forgot_at = 0.0
        """When a server started that lacks what an earlier one had; 0 if none did."""
        self.on_connect: list[Callable[[], None]] = []
        self._beat_script = load_script("processes")
        self._scripts = (self._beat_script, *scripts)
        self._connect_timeout = connect_timeout
        self._open_stream = open_stream or (lambda: address.open(context))
        self._connection: Connection | None = None
        self._connected = trio.Event()
        self._failure = "not connected yet"
        self._reconnection = Reconnection()

    def __repr__(self) -> str:
        return f"<RedisClient {self.address} {'connected' if self.is_connected else self._failure}>"

    @property
    def is_connected(self) -> bool:
        return self._connection is not None and not self._connection.closed

    @property
    def failure(self) -> str:
        """Return why there is no connection."""
        return self._failure

    @property
    def is_starting(self) -> bool:
        """Return whether the first connection is still to come."""
        return self.server is None

    async def wait_connected(self) -> None:
        """Wait for a connection; the caller limits the time."""
        await self._connected.wait()

    def send(self, command: tuple[Argument, ...], on_reply: OnReply) -> None:
        """Send a command without waiting. Raises RedisUnavailable if there is no connection."""
        if self._connection is None:
            raise RedisUnavailable(self._failure)
        self._connection.send(command, on_reply)

    async def request(self, *command: Argument) -> Any:
        """Return the reply to a command. Raises a RedisError, OutcomeUnknown after `timeout`."""
        if self._connection is None:
            raise RedisUnavailable(self._failure)
        with trio.move_on_after(self.timeout):
            return await self._connection.request(*command)
        raise OutcomeUnknown(f"no reply within {self.timeout:g} s (shared_state_timeout)")

    def script_command(self, script: Script, key: str, *arguments: Argument) -> tuple[Argument, ...]:
        """Return the command that runs a script on its key."""
        return ("EVALSHA", script.digest, 1, key, *arguments)

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

    def authentication(self) -> list[tuple[Argument, ...]]:
        """Return the commands with which a connection starts."""
        address = self.address
        commands: list[tuple[Argument, ...]] = []
        if address.password:
            commands.append(("AUTH", address.user or "default", address.password))
        if address.database:
            commands.append(("SELECT", address.database))
        return commands

    def _fail(self, error: RedisError) -> None:
        self._failure = str(error)
        self._reconnection.log(logging.ERROR, f"{self.address} cannot be used: {error}")

    async def _serve(self) -> None:
        """Connect, and return when the connection has ended. Raises a RedisError."""
        connection = await self.open_connection()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(connection.run)
                server = await self._shake_hands(connection)
                self._start(connection, server)
                await self._beat(connection)
        except* RedisError as group:
            raise first_error(group) from None
        finally:
            if self._connection is not None:
                self._connection, self._connected = None, trio.Event()

    async def _shake_hands(self, connection: Connection) -> ServerInfo:
        """Send all that starts a connection in one write. Raises a RedisError."""
        commands = self.authentication()
        commands += [("CLIENT", "SETNAME", f"qproxy-{self.process}"), ("ROLE",), ("INFO", "server")]
        commands += [("SCRIPT", "LOAD", script.text) for script in self._scripts]
        replies: dict[Argument, Any] = {}
        for command in commands:
            connection.send(command, partial(replies.__setitem__, command[0]))
        replies["TIME"] = await connection.request("TIME")
        return parse_server_info(replies["ROLE"], replies["INFO"], replies["TIME"])

    def _start(self, connection: Connection, server: ServerInfo) -> None:
        if self.server is not None and self.server.run_id != server.run_id:
            self.forgot_at = server.started_at
        self._reconnection.log(logging.INFO, f"connected to {self.address} (version {server.version})")
        self.server, self._connection, self._failure = server, connection, "the connection was lost"
        for callback in self.on_connect:
            callback()
        self._connected.set()

    async def _beat(self, connection: Connection) -> None:
        """Keep this process among the live ones. Raises a RedisError."""
        while True:
            command = self.script_command(
                self._beat_script, f"{self.prefix}:processes", self.process, BEAT_SECONDS
            )
            self.processes = max(1, await connection.request(*command))
            await trio.sleep(BEAT_SECONDS)


def parse_server_info(role: Any, info: bytes, time: Any) -> ServerInfo:
    """Return what ROLE, INFO and TIME report. Raises RedisUnavailable unless it is a primary."""
    if role[0] != b"master":
        raise RedisUnavailable(f"the server is a {role[0].decode()}, not a primary")
    fields = parse_info(info)
    version = fields.get("valkey_version") or fields.get("redis_version", "")
    started_at = int(time[0]) + int(time[1]) / 1e6 - int(fields.get("uptime_in_seconds", 0))
    return ServerInfo(version, fields.get("run_id", ""), started_at)


def parse_info(info: bytes) -> dict[str, str]:
    """Return the fields of a reply to INFO."""
    lines = (line.partition(":") for line in info.decode(errors="replace").splitlines())
    return {name: value for name, colon, value in lines if colon}
