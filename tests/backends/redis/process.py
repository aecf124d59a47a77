"""A process of an installation, over a link to a real server."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import trio

from qproxy.access.api_keys import ApiKey
from qproxy.auth.background import RefreshTasks
from qproxy.backends.local.login_sessions import LocalLoginSessions
from qproxy.backends.redis.api_keys import RedisApiKeys
from qproxy.backends.redis.client import RedisClient
from qproxy.backends.redis.key_table import API_KEYS, KeyTable
from qproxy.backends.redis.login_sessions import RedisLoginSessions
from qproxy.backends.redis.script import Script, load_script
from qproxy.backends.redis.subscriber import Subscriber
from tests.backends.redis.link import Link
from tests.backends.redis.server import Server, with_clock

LOGINS = with_clock(load_script("logins"))


async def start_client(
    link: Link, nursery: trio.Nursery, scripts: Sequence[Script], *, connected: bool = True
) -> RedisClient:
    """Return the client of a new process, which connects as soon as the link allows it."""
    client = RedisClient(
        link.server.address,
        prefix="q",
        timeout=0.25,
        connect_timeout=1.0,
        scripts=scripts,
        open_stream=link.open,
    )
    nursery.start_soon(client.run)
    if connected:
        await client.wait_connected()
    return client


class CurrentApiKeys(RedisApiKeys):
    """Keys that every process has read before the next one of its calls."""

    open: list[CurrentApiKeys]

    async def create(self, **fields: Any) -> tuple[ApiKey, str]:
        created = await super().create(**fields)
        await self._read_everywhere()
        return created

    async def revoke(self, id_or_name: str) -> ApiKey:
        revoked = await super().revoke(id_or_name)
        await self._read_everywhere()
        return revoked

    async def _read_everywhere(self) -> None:
        for store in self.open:
            await store.table.read()


async def open_api_keys(
    server: Server, nursery: trio.Nursery, clock: Callable[[], float], stores: list[CurrentApiKeys]
) -> CurrentApiKeys:
    """Return the keys of a new process, optional while there are none."""
    client = await start_client(Link(server), nursery, [API_KEYS])
    store = CurrentApiKeys(KeyTable(client, None), (), optional=True, wall_clock=clock)
    await store.table.read()
    stores.append(store)
    store.open = stores
    return store


def open_login_sessions(
    client: RedisClient, nursery: trio.Nursery, tasks: RefreshTasks, subscriber: Subscriber | None = None
) -> RedisLoginSessions:
    """Return the logins of a process, which publishes them each second: a link has no messages."""
    logins = RedisLoginSessions(client, LocalLoginSessions(tasks), script=LOGINS)
    nursery.start_soon(logins.run, subscriber or Subscriber(client))
    return logins
