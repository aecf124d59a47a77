"""Grants for all processes of all machines, and what this machine knows of them while the server is away.

Every grant is also added to this machine's own store and revoked there. That store decides only while the
server cannot be used: then a login counts on this machine alone, and ends when the server returns.
"""

from __future__ import annotations

import logging
from typing import Any

from qproxy.access.grants import GrantStore, GrantStoreError
from qproxy.backends.redis.client import RedisClient
from qproxy.backends.redis.connection import Argument
from qproxy.backends.redis.errors import RedisError
from qproxy.backends.redis.script import Script, load_script

GRANTS = load_script("grants")
MAX_GRANTS = 10_000
"""Of one kind; beyond it those that expire first are dropped."""
log = logging.getLogger("qproxy.backends")


class RedisGrants:
    """The store of grants on a server."""

    def __init__(
        self, client: RedisClient, local: GrantStore, *, script: Script = GRANTS, limit: int = MAX_GRANTS
    ) -> None:
        """`local` is this machine's own store."""
        self._client = client
        self._local = local
        self._script = script
        self._limit = limit

    def __repr__(self) -> str:
        return f"<RedisGrants {self._client!r}>"

    async def add(self, kind: str, digest: bytes, ends: float, *, epoch: str = "") -> None:
        await self._local.add(kind, digest, ends, epoch=epoch)
        try:
            await self._run(kind, "add", digest, f"{ends:.3f}", epoch, self._limit)
        except RedisError as error:
            log.warning("shared state: a grant counts on this machine only: kind=%s: %s", kind, error)

    async def has(self, kind: str, digest: bytes) -> bool:
        try:
            return bool(await self._run(kind, "has", digest))
        except RedisError:
            return await self._local.has(kind, digest)

    async def revoke(self, kind: str, digest: bytes) -> None:
        await self._local.revoke(kind, digest)
        await self._change(kind, "revoke", digest)

    async def retain(self, kind: str, epoch: str) -> None:
        await self._local.retain(kind, epoch)
        await self._change(kind, "retain", epoch)

    async def aclose(self) -> None:
        await self._local.aclose()

    async def _change(self, kind: str, *arguments: Argument) -> None:
        """Change what every machine knows. Raises GrantStoreError."""
        try:
            await self._run(kind, *arguments)
        except RedisError as error:
            raise GrantStoreError(f"The shared state cannot be used (shared_state): {error}.") from None

    async def _run(self, kind: str, *arguments: Argument) -> Any:
        key = f"{self._client.prefix}:{{g:{kind}}}"
        return await self._client.run_script(self._script, key, *arguments)
