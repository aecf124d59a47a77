"""The hidden rounds of responses that ended with calls for the client, which clients do not send back.

`ToolRoundStore` keeps them for the client's next request. It is bounded, and nothing depends on it: after a
loss the model sees the conversation as the client does. A conversation is identified by the client's key and
its first user message, so that no client can obtain the results of another one's tools, whatever call ids it
makes up.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Protocol, TypeAlias

from qproxy.wire import json_codec
from qproxy.wire.events import JSON, Turn
from qproxy.wire.tool_rounds import call_ids, restore_history

ConversationKey: TypeAlias = str
CallIds: TypeAlias = tuple[str, ...]


class ToolRoundStore(Protocol):
    """Hidden messages by conversation and call ids. A store that fails has nothing."""

    @property
    def is_empty(self) -> bool:
        """Return whether there is certainly nothing to load."""
        ...

    async def save(self, key: ConversationKey, ids: CallIds, messages: Sequence[JSON]) -> None:
        """Save the messages in place of those that the client sends with these calls."""
        ...

    async def load(self, key: ConversationKey, ids: Sequence[CallIds]) -> Mapping[CallIds, Sequence[JSON]]:
        """Return the saved messages for some calls of a conversation."""
        ...


async def restore(store: ToolRoundStore, turn: Turn, key: ConversationKey) -> Sequence[JSON]:
    """Return the turn's messages with the hidden rounds of earlier responses."""
    ids = [found for message in turn.messages if (found := call_ids(message))]
    if not ids:
        return turn.messages
    return restore_history(turn.messages, (await store.load(key, ids)).get)


def conversation_key(turn: Turn, key: str) -> ConversationKey:
    """Return the identity of the turn's conversation: the client's key and its first user message."""
    digest = hashlib.blake2b(key.encode(), digest_size=16)
    for message in turn.messages:
        if message.get("role") == "user":
            digest.update(b"\0" + json_codec.dumps(message.get("content")))
            break
    return digest.hexdigest()
