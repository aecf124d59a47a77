"""The client of a Valkey or Redis server: one connection for all of a process.

`on_connect` is called before anything new is sent over a new connection: it sends again what had no reply.
`redis+sentinel://` is one server, too, whose address is found anew for each connection.
"""

from __future__ import annotations

import secrets
import ssl
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import trio

from qproxy.backends.redis.address import Address
from qproxy.backends.redis.connection import Argument, Connection, OnPush, OnReply, wait_reply
from qproxy.backends.redis.errors import OutcomeUnknown, RedisError
from qproxy.backends.redis.node import BEAT_SECONDS, Node, OpenStream, ServerInfo, authentication
from qproxy.backends.redis.script import Script, load_script
from qproxy.backends.redis.sentinel import open_primary


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
        self.connect_timeout = connect_timeout
        self.processes = 1
        """Live processes, as of the last beat."""
        self.on_connect: list[Callable[[], None]] = []
        self._beat_script = load_script("processes")
        self._scripts = (self._beat_script, *scripts)
        self._context = context
        self._connected = trio.Event()
        self._attempted = False
        self.nodes: list[Node] = []
        """The servers; one, unless it is a cluster."""
        if open_stream is None and address.kind == "sentinel":
            open_stream = partial(open_primary, address, context, connect_timeout)
        if address.kind != "cluster":
            self.nodes.append(self._make_node(address, open_stream))

    def __repr__(self) -> str:
        return f"<RedisClient {self.address} {self.nodes}>"

    @property
    def is_connected(self) -> bool:
        """Return whether there is a connection; in a cluster, to any of its servers."""
        return any(node.is_connected for node in self.nodes)

    @property
    def failure(self) -> str:
        """Return why there is no connection."""
        return next((node.failure for node in self.nodes if not node.is_connected), "")

    @property
    def server(self) -> ServerInfo | None:
        """Return what the server has reported; None before the first connection."""
        return next((node.server for node in self.nodes if node.server), None)

    @property
    def forgot_at(self) -> float:
        """Return when a server started that lacks what an earlier one had; 0 if none did."""
        return max((node.forgot_at for node in self.nodes), default=0.0)

    @property
    def is_starting(self) -> bool:
        """Return whether the first attempt to connect has not ended."""
        return self.server is None and not self._attempted

    async def wait_connected(self) -> None:
        """Wait for a connection; the caller limits the time."""
        await self._connected.wait()

    def send(self, command: tuple[Argument, ...], on_reply: OnReply) -> None:
        """Send a command without waiting. Raises RedisUnavailable if there is no connection."""
        self.nodes[0].send(command, on_reply)

    async def request(self, *command: Argument) -> Any:
        """Return the reply to a command. Raises a RedisError, OutcomeUnknown after `timeout`."""
        with trio.move_on_after(self.timeout):
            return await wait_reply(self.send, command)
        raise OutcomeUnknown(f"no reply within {self.timeout:g} s (shared_state_timeout)")

    async def run_script(self, script: Script, key: str, *arguments: Argument) -> Any:
        """Return a script's reply, after the first connection. Raises a RedisError within `timeout`."""
        with trio.move_on_after(self.timeout):
            if self.is_starting:
                await self.wait_connected()
            return await self.request(*self.script_command(script, key, *arguments))
        raise OutcomeUnknown(f"no reply within {self.timeout:g} s (shared_state_timeout)")

    def script_command(self, script: Script, key: str, *arguments: Argument) -> tuple[Argument, ...]:
        """Return the command that runs a script on its key."""
        return ("EVALSHA", script.digest, 1, key, *arguments)

    async def open_connection(self, on_push: OnPush = lambda message: None) -> Connection:
        """Return a new connection, before its handshake. Raises RedisUnavailable."""
        return await self.nodes[0].open_connection(on_push)

    def authentication(self) -> list[tuple[Argument, ...]]:
        """Return the commands with which a connection starts."""
        return authentication(self.address)

    async def run(self) -> None:
        """Stay connected until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._run_nodes)
            while True:
                await trio.sleep(BEAT_SECONDS)
                self._beat()

    async def _run_nodes(self) -> None:
        await self.nodes[0].run()

    def _make_node(self, address: Address, open_stream: OpenStream | None = None) -> Node:
        return Node(
            address,
            process=self.process,
            scripts=self._scripts,
            connect_timeout=self.connect_timeout,
            open_stream=open_stream or partial(address.open, self._context),
            on_change=self._change,
        )

    def _change(self, node: Node) -> None:
        """Send again over a new connection, or record the loss of one."""
        if node.is_connected:
            for callback in self.on_connect:
                callback()
            self._beat()
            self._connected.set()
            return
        self._attempted = True
        if self._connected.is_set() and not self.is_connected:
            self._connected = trio.Event()

    def _beat(self) -> None:
        """Keep this process among the live ones."""
        key = f"{self.prefix}:processes"
        with suppress(RedisError):  # its node logs what is wrong with a connection
            self.send(self.script_command(self._beat_script, key, self.process, BEAT_SECONDS), self._count)

    def _count(self, reply: Any) -> None:
        if isinstance(reply, int):
            self.processes = max(1, reply)
