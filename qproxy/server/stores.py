"""The stores of the Responses API and of chat completions, which are opened and closed together."""

from __future__ import annotations

from dataclasses import dataclass

from qproxy.server.completion_store import CompletionStore
from qproxy.server.conversation_store import ConversationStore
from qproxy.server.response_runs import ResponseRunStore
from qproxy.server.response_store import ResponseStore


@dataclass(frozen=True, slots=True)
class ResponseStores:
    """One store of each kind; none of a kind if responses are not stored."""

    responses: ResponseStore | None
    conversations: ConversationStore | None
    response_runs: ResponseRunStore | None
    completions: CompletionStore | None

    async def aclose(self) -> None:
        """Close what is open."""
        for store in (self.responses, self.conversations, self.response_runs, self.completions):
            if store is not None:
                await store.aclose()
