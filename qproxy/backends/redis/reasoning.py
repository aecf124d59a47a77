"""Ciphertexts of reasoning for all processes of all machines, each process's own memory first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from qproxy.backends.redis.memory import SealedMemory
from qproxy.relay.reasoning_store import ReasoningKey, ReasoningStore


class RedisReasoning:
    """The store; a ciphertext is encrypted once more."""

    def __init__(self, memory: SealedMemory, local: ReasoningStore) -> None:
        """`local` is this process's own memory."""
        self._memory = memory
        self._local = local

    def __repr__(self) -> str:
        return f"<RedisReasoning {self._memory!r} {self._local!r}>"

    @property
    def is_empty(self) -> bool:
        """Return False: another process may have saved something."""
        return False

    async def save(self, key: ReasoningKey, ciphertext: str) -> None:
        await self._local.save(key, ciphertext)
        await self._memory.save(key, ciphertext.encode("utf-8", "surrogatepass"))

    async def load(self, keys: Sequence[ReasoningKey]) -> Mapping[ReasoningKey, str]:
        found = dict(await self._local.load(keys))
        self._memory.renew([*found])
        for name, data in (await self._memory.load([key for key in keys if key not in found])).items():
            key = name[0], name[1], name[2]
            found[key] = data.decode("utf-8", "surrogatepass")
            await self._local.save(key, found[key])
        return found
