"""API keys of all machines, besides those of the settings of this one.

`key_table` has a copy of them, which is in use at once when it has changed: this is the store around it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from qproxy.access import api_keys
from qproxy.access.api_keys import ApiKey, StaticApiKeys
from qproxy.backends.redis.key_table import KeyTable
from qproxy.wire.errors import InvalidKeyError, QproxyError


class RedisApiKeys:
    """The keys of the settings and of the table.

    They are required even while there are none: a table that was lost does not make the server open.
    """

    def __init__(
        self,
        table: KeyTable,
        configured: Sequence[ApiKey],
        *,
        optional: bool,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """`optional`: require no key while none exists (`insecure_no_auth`)."""
        self.table = table
        self._configured = tuple(configured)
        self._optional = optional
        self._wall_clock = wall_clock
        self._shared: tuple[ApiKey, ...] = ()
        self._known = StaticApiKeys(self._configured)

    def __repr__(self) -> str:
        return f"<RedisApiKeys {self.table!r}>"

    def with_settings(self, configured: Sequence[ApiKey], *, optional: bool) -> RedisApiKeys:
        """Return the same keys with others of the settings."""
        return RedisApiKeys(self.table, configured, optional=optional, wall_clock=self._wall_clock)

    @property
    def writable(self) -> bool:
        return True

    def list_keys(self) -> tuple[ApiKey, ...]:
        return self._current().list_keys()

    def required(self) -> bool:
        return not (self._optional and self.table.loaded.is_set()) or self._current().required()

    def authenticate(self, secret: str) -> ApiKey:
        try:
            return self._current().find(secret, self._wall_clock())
        except InvalidKeyError:
            if self.table.loaded.is_set():
                raise
        raise QproxyError(
            "The API keys have not been read from the shared state yet. Retry in 2 s.",
            status=503,
            code="shared_state_unavailable",
            retry_after=2,
        )

    async def create(self, **fields: Any) -> tuple[ApiKey, str]:
        key, secret = api_keys.generate(**fields)
        await self.table.change(lambda keys: [api_keys.with_key(keys, key)[-1]])
        return key, secret

    async def revoke(self, id_or_name: str) -> ApiKey:
        revoked: list[ApiKey] = []

        def change(keys: Sequence[ApiKey]) -> list[ApiKey]:
            revoked[:] = [api_keys.with_revoked(keys, id_or_name)[1]]
            return revoked

        await self.table.change(change)
        return revoked[0]

    def _current(self) -> StaticApiKeys:
        """Return all keys in use, indexed again when the table has changed."""
        shared = self.table.keys if self.table.loaded.is_set() else ()
        if shared is not self._shared:
            self._shared = shared
            self._known = StaticApiKeys((*self._configured, *shared))
        return self._known
