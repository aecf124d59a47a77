"""Opens the stores of what clients sent and got, which are sealed, around this machine's own stores."""

from __future__ import annotations

from qproxy.backends.redis.client import RedisClient
from qproxy.backends.redis.conversations import CONVERSATIONS, RedisConversations
from qproxy.backends.redis.memory import SealedMemory
from qproxy.backends.redis.reasoning import RedisReasoning
from qproxy.backends.redis.records import OWNERS
from qproxy.backends.redis.response_runs import RUNS, RedisResponseRuns
from qproxy.backends.redis.responses import RESPONSES, RedisResponses
from qproxy.backends.redis.sealing import Sealer
from qproxy.backends.redis.tool_rounds import RedisToolRounds
from qproxy.relay.reasoning_store import ReasoningStore
from qproxy.relay.tool_rounds import ToolRoundStore
from qproxy.server.stores import ResponseStores

SCRIPTS = (OWNERS, RESPONSES, CONVERSATIONS, RUNS)


class RedisStores:
    """Opens stores on one server with one key."""

    def __init__(self, client: RedisClient, sealer: Sealer) -> None:
        """`client` has `SCRIPTS`."""
        self._client = client
        self._sealer = sealer

    def __repr__(self) -> str:
        return f"<RedisStores {self._client!r}>"

    def open_responses(self, local: ResponseStores, *, max_age: float, max_bytes: int) -> ResponseStores:
        """Return the stores of the Responses API; none if this machine has none."""
        if local.responses is None:
            return local
        responses = RedisResponses(
            self._client, self._sealer, local.responses, max_age=max_age, max_bytes=max_bytes
        )
        assert local.conversations is not None
        conversations = RedisConversations(self._client, self._sealer, local.conversations, max_age=max_age)
        runs = RedisResponseRuns(self._client, self._sealer)
        return ResponseStores(responses, conversations, runs, local.completions)

    def open_tool_rounds(self, local: ToolRoundStore, *, seconds: float) -> RedisToolRounds:
        """Return the store of hidden tool rounds."""
        return RedisToolRounds(SealedMemory(self._client, self._sealer, "m", seconds=seconds), local)

    def open_reasoning(self, local: ReasoningStore, *, seconds: float) -> RedisReasoning:
        """Return the store of ciphertext of reasoning."""
        return RedisReasoning(SealedMemory(self._client, self._sealer, "t", seconds=seconds), local)
