"""The client of a cluster: a connection to each primary, and the slots that each serves.

A command goes to the server of its key's slot. `MOVED` names another one, which has the slot from then on,
and `ASK` one for this command; both mean that it was not executed, so it is sent again. One task reads the
table of slots: at the start, after a `MOVED`, and while a server is away, whose place a replica may take.

Commands of one key that are in flight while its slot moves may change their order: of numbered writes one is
in flight at a time.
"""

from __future__ import annotations

import logging
import math
import random
from binascii import crc_hqx
from collections.abc import Sequence
from functools import partial
from typing import Any

import trio

from qproxy.backends.redis.address import Address
from qproxy.backends.redis.client import RedisClient
from qproxy.backends.redis.connection import Argument, Connection, OnPush, OnReply, query, wait_reply
from qproxy.backends.redis.errors import RedisError, RedisReplyError, RedisUnavailable
from qproxy.backends.redis.node import Node
from qproxy.backends.redis.reconnection import Reconnection

SLOTS = 16384
MAX_REDIRECTIONS = 5
REFRESH_SECONDS = 0.5
"""Between two reads of the slots, at least; also while a server is away."""
KEYLESS = frozenset(("INFO", "PING", "PUBLISH", "ROLE", "TIME", "CLUSTER"))
"""Commands whose first argument is no key; any server executes them."""


def slot_of(key: str | bytes) -> int:
    """Return the slot of a key: of what stands in its first braces, unless that is empty."""
    data = key.encode() if isinstance(key, str) else key
    tag = data.partition(b"{")[2].partition(b"}")
    return crc_hqx(tag[0] if tag[0] and tag[1] else data, 0) % SLOTS


def key_of(command: tuple[Argument, ...]) -> str | bytes | None:
    """Return the first key of a command; None if it has none."""
    if command[0] in KEYLESS or len(command) < 2:
        return None
    key = command[3 if command[0] == "EVALSHA" else 1]
    return key if isinstance(key, bytes) else str(key)


class ClusterClient(RedisClient):
    """A client, which `run` keeps connected with all primaries."""

    def __init__(self, address: Address, **options: Any) -> None:
        super().__init__(address, **options)
        self._slots: list[Node | None] = [None] * SLOTS
        self._scopes: dict[Node, trio.CancelScope] = {}
        self._stale = trio.Event()
        self._log = Reconnection()
        self._failure = "not connected yet"
        self._nursery: trio.Nursery | None = None

    @property
    def failure(self) -> str:
        return super().failure or self._failure

    def send(self, command: tuple[Argument, ...], on_reply: OnReply) -> None:
        self._send(self._route(command), command, on_reply, MAX_REDIRECTIONS)

    async def open_connection(self, on_push: OnPush = lambda message: None) -> Connection:
        """Return a new connection to any server: published messages reach all of them."""
        return await self._any_node().open_connection(on_push)

    def _route(self, command: tuple[Argument, ...]) -> Node:
        key = key_of(command)
        if key is None:
            return self._any_node()
        node = self._slots[slot_of(key)]
        if node is None:
            self._stale.set()
            raise RedisUnavailable(f"no server of the cluster has slot {slot_of(key)}: {self._failure}")
        return node

    def _any_node(self) -> Node:
        for node in self.nodes:
            if node.is_connected:
                return node
        raise RedisUnavailable(self.failure)

    def _send(self, node: Node, command: tuple[Argument, ...], on_reply: OnReply, left: int) -> None:
        node.send(command, partial(self._receive, node, command, on_reply, left))

    def _receive(
        self, node: Node, command: tuple[Argument, ...], on_reply: OnReply, left: int, reply: Any
    ) -> None:
        """Pass a reply on, or follow a redirection."""
        if not (isinstance(reply, RedisReplyError) and reply.is_redirection and left):
            on_reply(reply)
            return
        try:
            self._redirect(node, str(reply), command, on_reply, left - 1)
        except RedisError as error:
            on_reply(error)

    def _redirect(
        self, node: Node, error: str, command: tuple[Argument, ...], on_reply: OnReply, left: int
    ) -> None:
        """Send a command where an error reply points to. Raises a RedisError."""
        kind, _, place = error.partition(" ")
        if kind == "TRYAGAIN":
            raise RedisReplyError(error)
        slot, _, authority = place.partition(" ")
        host, _, port = authority.rpartition(":")
        target = self._open_node(host or node.address.host, int(port))
        if kind == "MOVED":
            self._slots[int(slot)] = target
            self._stale.set()
        else:
            target.send(("ASKING",), lambda reply: None)
        self._send(target, command, on_reply, left)

    async def _run_nodes(self) -> None:
        async with trio.open_nursery() as self._nursery:
            while True:
                self._stale = trio.Event()
                try:
                    self._apply(*await self._read_slots())
                except RedisError as error:
                    self._failure, self._attempted = str(error), True
                    self._log.log(logging.ERROR, f"{self.address} cannot be used: {error}")
                with trio.move_on_after(math.inf if self._is_complete else REFRESH_SECONDS):
                    await self._stale.wait()
                await trio.sleep(REFRESH_SECONDS * random.uniform(0.5, 1.0))

    @property
    def _is_complete(self) -> bool:
        """Return whether there is a table of slots, and a connection to each server."""
        return any(self._slots) and all(node.is_connected for node in self.nodes)

    async def _read_slots(self) -> tuple[str, Any]:
        """Return the reply to CLUSTER SLOTS and who gave it, a server or a seed. Raises a RedisError."""
        command = ("CLUSTER", "SLOTS")
        for node in random.sample(self.nodes, len(self.nodes)):
            if node.is_connected:
                with trio.move_on_after(self.connect_timeout):
                    return node.address.host, await wait_reply(node.send, command)
        failures = []
        for host, port in random.sample(self.address.hosts, len(self.address.hosts)):
            seed = self.address.at(host, port)
            try:
                with trio.fail_after(self.connect_timeout):
                    stream = await seed.open(self._context)
                    commands = [*self.authentication(), command]
                    return host, await query(stream, commands, timeout=self.connect_timeout)
            except (OSError, trio.BrokenResourceError, RedisError) as error:
                failures.append(f"{host}:{port}: {error}")
            except trio.TooSlowError:
                failures.append(f"{host}:{port}: no reply (shared_state_connect_timeout)")
        raise RedisUnavailable("; ".join(failures))

    def _apply(self, host: str, rows: Sequence[Any]) -> None:
        """Use a table of slots; servers that serve none and are not connected are left."""
        if not rows:
            raise RedisUnavailable("the cluster serves no slots")
        slots: list[Node | None] = [None] * SLOTS
        for first, last, primary, *_ in rows:
            node = self._open_node((primary[0] or b"").decode() or host, int(primary[1]))
            slots[first : last + 1] = [node] * (last - first + 1)
        self._slots = slots
        serving = set(slots)
        for node in [*self.nodes]:
            if node not in serving and not node.is_connected:
                self.nodes.remove(node)
                self._scopes.pop(node).cancel()

    def _open_node(self, host: str, port: int) -> Node:
        """Return the server at an address, which is connected from now on."""
        for node in self.nodes:
            if (node.address.host, node.address.port) == (host, port):
                return node
        node, scope = self._make_node(self.address.at(host, port)), trio.CancelScope()
        self.nodes.append(node)
        self._scopes[node] = scope
        assert self._nursery is not None
        self._nursery.start_soon(self._run_node, node, scope)
        return node

    async def _run_node(self, node: Node, scope: trio.CancelScope) -> None:
        with scope:
            await node.run()

    def _change(self, node: Node) -> None:
        super()._change(node)
        if not node.is_connected:
            self._stale.set()
