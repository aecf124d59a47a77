"""The state of the engine's servers, for `qproxy check` and `qproxy shared show`.

In a cluster all primaries are read; the keys that exist are counted by their kind.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio

from qproxy.backends.redis.client import RedisClient
from qproxy.backends.redis.connection import first_error, wait_reply
from qproxy.backends.redis.errors import OutcomeUnknown, RedisError, RedisUnavailable
from qproxy.backends.redis.node import parse_info
from qproxy.backends.redis.permissions import missing_commands
from qproxy.server.replicas import Replica


@dataclass(frozen=True, slots=True)
class ServerReport:
    """The state of a server, or of all primaries of a cluster."""

    versions: Sequence[str]
    """One of each server."""
    roles: Sequence[str]
    evictions: Sequence[str]
    persistent: bool
    """Whether every server writes an append-only file."""
    encrypted: bool
    """Whether no network has what is sent in the clear."""
    missing_commands: Sequence[str]
    """Those that qproxy needs and its user may not use."""
    clock_difference: float
    """Seconds that the server's clock is ahead of this machine's."""
    processes: int
    """Live processes of qproxy, without this one."""
    replicas: Sequence[Replica]
    """Those that describe themselves."""


@asynccontextmanager
async def connection_of(client: RedisClient, seconds: float) -> AsyncIterator[None]:
    """Keep a client connected within the context. Raises RedisUnavailable if it does not connect in time."""
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.run)
            with trio.move_on_after(seconds):
                await client.wait_connected()
                await client.presence.joined.wait()
            try:
                if not client.is_connected or client.refusal:
                    raise RedisUnavailable(client.failure or "no reply")
                yield
            finally:
                with trio.CancelScope(shield=True):
                    await client.presence.end()
                nursery.cancel_scope.cancel()
    except* RedisError as group:
        raise first_error(group) from None


async def read_report(client: RedisClient) -> ServerReport:
    """Return what the servers of a connected client report. Raises a RedisError."""
    infos = []
    for node in client.nodes:
        with trio.move_on_after(client.timeout):
            infos.append(parse_info(await wait_reply(node.send, ("INFO",))))
            continue
        raise OutcomeUnknown(f"{node.address}: no reply within {client.timeout:g} s (shared_state_timeout)")
    before = time.time()
    seconds, microseconds = await client.request("TIME")
    now = (before + time.time()) / 2
    return ServerReport(
        versions=[info.get("valkey_version") or info.get("redis_version", "") for info in infos],
        roles=[info.get("role", "") for info in infos],
        evictions=[info.get("maxmemory_policy", "") for info in infos],
        persistent=all(info.get("aof_enabled") == "1" for info in infos),
        encrypted=client.address.is_private,
        missing_commands=await missing_commands(client),
        clock_difference=int(seconds) + int(microseconds) / 1e6 - now,
        processes=max(0, await client.request("ZCARD", f"{client.prefix}:processes") - 1),
        replicas=await client.presence.replicas(),
    )
