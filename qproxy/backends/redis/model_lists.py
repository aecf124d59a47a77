"""Lists of models for all processes of all machines: one key an account, claimed by the process that asks."""

from __future__ import annotations

import json
import math
from contextlib import suppress
from dataclasses import astuple
from typing import Any

import trio

from qproxy.backends.redis.client import RedisClient
from qproxy.backends.redis.errors import RedisError
from qproxy.backends.redis.names import account_name
from qproxy.relay.model_lists import SharedModelList
from qproxy.wire.endpoints.models import Model

CLAIMED = b"claimed"
POLL_SECONDS = 0.25
MAX_BYTES = 256 * 1024
"""Of one list; a larger one is not shared."""


class RedisModelLists:
    """The lists on a server."""

    def __init__(self, client: RedisClient) -> None:
        self._client = client

    def __repr__(self) -> str:
        return f"<RedisModelLists {self._client!r}>"

    async def get_or_claim(self, identity: str, seconds: float) -> tuple[SharedModelList, float] | None:
        key = self._key(identity)
        try:
            while True:
                claim = ("SET", key, CLAIMED, "NX", "PX", math.ceil(seconds * 1000))
                if await self._client.request(*claim) is not None:
                    return None
                value, left = await self._client.request("GET", key), await self._client.request("TTL", key)
                if value is not None and value != CLAIMED:
                    found = parse_list(value)
                    return None if found is None else (found, max(1.0, left))
                await trio.sleep(POLL_SECONDS)
        except RedisError:  # which the client has logged
            return None

    async def save(self, identity: str, found: SharedModelList, seconds: float) -> None:
        models = None if found.models is None else [astuple(model) for model in found.models]
        data = json.dumps([found.is_failure, models]).encode()
        if seconds <= 0 or len(data) > MAX_BYTES:
            return
        with suppress(RedisError):  # each process asks for itself
            await self._client.request("SET", self._key(identity), data, "PX", math.ceil(seconds * 1000))

    def _key(self, identity: str) -> str:
        return f"{self._client.prefix}:{{a:{account_name(identity)}}}:m"


def parse_list(data: bytes) -> SharedModelList | None:
    """Return a list that this or another version has saved; None if it cannot be read."""
    try:
        found: Any = json.loads(data)
        is_failure, models = found
        return SharedModelList(
            None if models is None else tuple(Model(*row) for row in models), bool(is_failure)
        )
    except (ValueError, TypeError):
        return None
