"""The keys of an installation on the engine: how many of each kind, and the records sealed with older keys.

Every server of a cluster is scanned in steps, so that others are served meanwhile; a key that appears or goes
while the scan runs may be missed or counted twice.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import trio

from qproxy.backends.redis.client import RedisClient
from qproxy.backends.redis.connection import Argument, wait_reply
from qproxy.backends.redis.errors import OutcomeUnknown
from qproxy.backends.redis.node import Node
from qproxy.backends.redis.script import load_script, script_command
from qproxy.backends.redis.sealing import Sealer, SealError

RESEAL = load_script("reseal")
STEP = 200
"""Keys of one step of a scan."""
KINDS = {
    "k": "limits of API keys", "w": "wrong keys by address", "keys": "API keys", "g": "grants",
    "a": "accounts", "r": "responses", "c": "conversations", "e": "background responses", "m": "tool rounds",
    "t": "reasoning", "login": "logins in progress", "process": "processes", "processes": "processes",
}  # fmt: skip
SEALED = b"gAAAAA"
"""The beginning of what Fernet has encrypted: its version, and a date before 2106."""


@dataclass(slots=True)
class KindSize:
    """The keys of one kind."""

    keys: int = 0
    bytes: int = 0
    """As the servers count their memory."""


@dataclass(slots=True)
class ResealOutcome:
    """The outcome of sealing records again."""

    sealed: int = 0
    """Records that are sealed with the first key now, and were not."""
    current: int = 0
    """Records that were already."""
    failed: int = 0
    """Records that no key opens."""


async def measure_kinds(client: RedisClient) -> dict[str, KindSize]:
    """Return the keys of each kind. Raises a RedisError."""
    found: dict[str, KindSize] = {}
    async for node, keys in _scan(client):
        sizes = await _request_all(client, node, [("MEMORY", "USAGE", key) for key in keys])
        for key, size in zip(keys, sizes, strict=True):
            if size is not None:  # it has expired since
                kind = found.setdefault(_kind(client, key), KindSize())
                kind.keys += 1
                kind.bytes += size
    return dict(sorted(found.items()))


async def reseal_records(client: RedisClient, sealer: Sealer) -> ResealOutcome:
    """Seal every record with the first key. Raises a RedisError."""
    outcome = ResealOutcome()
    async for node, keys in _scan(client):
        types = await _request_all(client, node, [("TYPE", key) for key in keys])
        for key, kind in zip(keys, types, strict=True):
            if kind == b"string":
                (value,) = await _request_all(client, node, [("GET", key)])
                await _reseal(client, node, sealer, key, b"", value or b"", outcome)
            elif kind == b"hash":
                async for field, value in _fields(client, node, key):
                    await _reseal(client, node, sealer, key, field, value, outcome)
    return outcome


async def _reseal(
    client: RedisClient,
    node: Node,
    sealer: Sealer,
    key: bytes,
    field: bytes,
    value: bytes,
    outcome: ResealOutcome,
) -> None:
    """Replace one value, unless it has changed meanwhile."""
    if not value.startswith(SEALED):
        return
    try:
        new = await trio.to_thread.run_sync(sealer.renew, value)
    except SealError:
        outcome.failed += 1
        return
    if new is None:
        outcome.current += 1
        return
    digest = hashlib.sha1(value, usedforsecurity=False).hexdigest()
    command = script_command(RESEAL, key.decode(), field, digest, new)
    (replaced,) = await _request_all(client, node, [command])
    outcome.sealed += replaced


async def _scan(client: RedisClient) -> AsyncIterator[tuple[Node, list[bytes]]]:
    """Yield the installation's keys of every server, some at a time."""
    for node in [*client.nodes]:
        cursor: Argument = 0
        while True:
            command = ("SCAN", cursor, "MATCH", f"{client.prefix}:*", "COUNT", STEP)
            ((cursor, keys),) = await _request_all(client, node, [command])
            if keys:
                yield node, keys
            if cursor == b"0":
                break


async def _fields(client: RedisClient, node: Node, key: bytes) -> AsyncIterator[tuple[bytes, bytes]]:
    """Yield the fields of a hash with their values."""
    cursor: Argument = 0
    while True:
        ((cursor, found),) = await _request_all(client, node, [("HSCAN", key, cursor, "COUNT", STEP)])
        for pair in _pairs(found):
            yield pair
        if cursor == b"0":
            break


def _pairs(found: Sequence[bytes]) -> Iterator[tuple[bytes, bytes]]:
    return zip(found[::2], found[1::2], strict=True)


async def _request_all(
    client: RedisClient, node: Node, commands: Sequence[tuple[Argument, ...]]
) -> list[Any]:
    """Return the replies of one server to commands that leave together. Raises a RedisError."""
    replies: list[Any] = [None] * len(commands)

    async def ask(number: int, command: tuple[Argument, ...]) -> None:
        replies[number] = await wait_reply(node.send, command)

    with trio.move_on_after(max(client.timeout, client.connect_timeout)):
        if len(commands) == 1:
            return [await wait_reply(node.send, commands[0])]
        async with trio.open_nursery() as nursery:
            for number, command in enumerate(commands):
                nursery.start_soon(ask, number, command)
        return replies
    raise OutcomeUnknown(f"{node.address}: no reply (shared_state_connect_timeout)")


def _kind(client: RedisClient, key: bytes) -> str:
    """Return the kind of a key, by its first letters."""
    name = re.split("[:}]", key.decode(errors="replace").removeprefix(f"{client.prefix}:").lstrip("{"))[0]
    return KINDS.get(name, name)
