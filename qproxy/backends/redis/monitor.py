"""The engine as operators see it: metrics, the processes that share it, and a program that is too old."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import trio

from qproxy.backends.redis.client import RedisClient
from qproxy.backends.redis.errors import RedisError
from qproxy.config.accounts import ConfigError
from qproxy.server.replicas import Replica, SharedStateStatistics


class RedisMonitor:
    """A view of a client."""

    def __init__(self, client: RedisClient, outbox: Callable[[], int]) -> None:
        """`outbox` returns how many subjects have changes that the server does not have yet."""
        self._client = client
        self._outbox = outbox

    def __repr__(self) -> str:
        return f"<RedisMonitor of {self._client!r}>"

    def describe_process(self, describe: Callable[[], str]) -> None:
        self._client.presence.describe = describe

    async def replicas(self) -> Sequence[Replica] | None:
        try:
            return await self._client.presence.replicas()
        except RedisError:
            return None

    async def require_compatible(self) -> None:
        """Wait for the first connection, and raise ConfigError if the data is too new for this program."""
        client = self._client
        with trio.move_on_after(client.connect_timeout):
            if client.is_starting:
                await client.presence.joined.wait()
        if client.refusal:
            raise ConfigError(f"shared_state: {client.refusal}.")

    def statistics(self) -> SharedStateStatistics:
        client = self._client
        statistics = client.statistics
        return SharedStateStatistics(
            client.is_connected, self._outbox(), statistics.outcomes(), statistics.seconds
        )
