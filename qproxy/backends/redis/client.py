"""The client of a Valkey or Redis server: one connection for all of a process.

`on_connect` is called before anything new is sent over a new connection: it sends again what had no reply.
`redis+sentinel://` is one server, too, whose address is found anew for each connection.
"""

from __future__ import annotations

import logging
import secrets
import ssl
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import trio

from qproxy.backends.redis.address import Address
from qproxy.backends.redis.connection import Argument, Connection, OnPush, OnReply, wait_reply
from qproxy.backends.redis.errors import OutcomeUnknown
from qproxy.backends.redis.node import BEAT_SECONDS, Node, OpenStream, ServerInfo, authentication
from qproxy.backends.redis.presence import BEAT, LEAST_READER, META, SCHEMA, Presence
from qproxy.backends.redis.script import Script, script_command
from qproxy.backends.redis.sentinel import open_primary
from qproxy.backends.redis.statistics import Statistics

log = logging.getLogger("qproxy.backends")


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
        schema: int = SCHEMA,
        least_reader: int = LEAST_READER,
    ) -> None:
        """`timeout` bounds a `request`; `connect_timeout` a handshake, and the silence of a connection."""
        self.address = address
        self.process = secrets.token_hex(8)
        """Identifies this process on the server."""
        self.prefix = f"{prefix}{schema}"
        """Of all keys; the number is the schema's."""
        self.timeout = timeout
        self.connect_timeout = connect_timeout
        self.statistics = Statistics()
        self.on_connect: list[Callable[[], None]] = []
        self.presence = Presence(
            self.process,
            prefix,
            schema=schema,
            least_reader=least_reader,
            send=self.send,
            request=self.request,
            on_refusal=self._refuse,
        )
        self.refusal = ""
        """Why this program must not use the server; empty if it may."""
        self._scripts = (BEAT, META, *scripts)
        self._context = context
        self._connected = trio.Event()
        self._attempted = False
        self._scope = trio.CancelScope()
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
        if self.refusal:
            return self.refusal
        return next((node.failure for node in self.nodes if not node.is_connected), "")

    @property
    def processes(self) -> int:
        """Return how many processes live, as of the last sign of life."""
        return self.presence.processes

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
        return script_command(script, key, *arguments)

    async def open_connection(self, on_push: OnPush = lambda message: None) -> Connection:
        """Return a new connection, before its handshake. Raises RedisUnavailable."""
        return await self.nodes[0].open_connection(on_push)

    def authentication(self) -> list[tuple[Argument, ...]]:
        """Return the commands with which a connection starts."""
        return authentication(self.address)

    async def run(self) -> None:
        """Stay connected until cancelled."""
        with self._scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._run_nodes)
                while True:
                    await trio.sleep(BEAT_SECONDS)
                    self.presence.beat()
        await trio.sleep_forever()  # refused: the policy decides

    def _refuse(self, reason: str) -> None:
        """Use the server no more, since this program is too old for its data."""
        log.error("shared state: %s cannot be used: %s", self.address, reason)
        self.refusal = reason
        for node in self.nodes:
            node.failure = reason
        self._scope.cancel()

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
            statistics=self.statistics,
        )

    def _change(self, node: Node) -> None:
        """Send again over a new connection, or record the loss of one."""
        if node.is_connected:
            self.presence.begin()
            for callback in self.on_connect:
                callback()
            self.presence.beat()
            self._connected.set()
            return
        self._attempted = True
        if self._connected.is_set() and not self.is_connected:
            self._connected = trio.Event()
