"""Hidden tool rounds for all processes of all machines, each process's own memory first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from qproxy.backends.redis.memory import SealedMemory
from qproxy.relay.tool_rounds import CallIds, ConversationKey, ToolRoundStore
from qproxy.wire import json_codec
from qproxy.wire.events import JSON


class RedisToolRounds:
    """The store."""

    def __init__(self, memory: SealedMemory, local: ToolRoundStore) -> None:
        """`local` is this process's own memory."""
        self._memory = memory
        self._local = local

    def __repr__(self) -> str:
        return f"<RedisToolRounds {self._memory!r} {self._local!r}>"

    @property
    def is_empty(self) -> bool:
        """Return False: another process may have saved something."""
        return False

    async def save(self, key: ConversationKey, ids: CallIds, messages: Sequence[JSON]) -> None:
        await self._local.save(key, ids, messages)
        await self._memory.save((key, ids), json_codec.dumps(list(messages)))

    async def load(self, key: ConversationKey, ids: Sequence[CallIds]) -> Mapping[CallIds, Sequence[JSON]]:
        found = dict(await self._local.load(key, ids))
        self._memory.renew([(key, each) for each in found])
        missing = [(key, each) for each in ids if each not in found]
        for (_, each), data in (await self._memory.load(missing)).items():
            found[each] = json_codec.loads(data)
            await self._local.save(key, each, found[each])
        return found
