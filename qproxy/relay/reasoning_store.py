"""Ciphertext of reasoning, kept for clients that drop unknown fields, and put back on its message in the next
turn.

A ciphertext is found by the client's key, the account that made it, and a hash of the assistant message that
it belongs to, with the question before it and the start of its conversation: the same short answer to another
question, or in another conversation, has other thoughts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Protocol, TypeAlias

from qproxy.wire import json_codec
from qproxy.wire.dialects import message_rules
from qproxy.wire.events import JSON, EncryptedReasoning, Event, StreamFailed, TextDelta, ToolCallStart, Turn

ReasoningKey: TypeAlias = tuple[str, str, str]
"""Digest of the client's key, the account, and the hash of the message."""


class ReasoningStore(Protocol):
    """A store of ciphertexts, bounded in size and time."""

    @property
    def is_empty(self) -> bool: ...

    async def save(self, key: ReasoningKey, ciphertext: str) -> None: ...

    async def load(self, keys: Sequence[ReasoningKey]) -> Mapping[ReasoningKey, str]: ...


class ReasoningKeeper:
    """Saves and restores the ciphertexts of one client's conversation with one account."""

    def __init__(self, store: ReasoningStore, client: str, account: str, conversation: str) -> None:
        self._store = store
        self._client = client
        self._account = account
        self._conversation = conversation

    async def restore(self, messages: Sequence[JSON]) -> Sequence[JSON]:
        """Return the messages, with the ciphertext of those that have lost it."""
        if self._store.is_empty:
            return messages
        keys = {number: self._key(question, *content) for number, question, content in _without(messages)}
        known = await self._store.load(list(keys.values()))
        if not known:
            return messages
        return [
            {**message, "encrypted_content": known[keys[number]]} if keys.get(number) in known else message
            for number, message in enumerate(messages)
        ]

    def recorder(self, turn: Turn) -> ReasoningRecorder:
        """Return a stage that saves the ciphertext of the response to a turn."""
        questions = (message_rules.text_of(m) for m in reversed(turn.messages) if m.get("role") == "user")
        return ReasoningRecorder(partial(self._save, next(questions, "")), turn.prior_text)

    async def _save(self, question: str, text: str, call_ids: Sequence[str], ciphertext: str) -> None:
        await self._store.save(self._key(question, text, call_ids), ciphertext)

    def _key(self, question: str, text: str, call_ids: Sequence[str]) -> ReasoningKey:
        data = json_codec.dumps([self._conversation, question, text.strip(), list(call_ids)])
        return self._client, self._account, hashlib.sha256(data).hexdigest()


class ReasoningRecorder:
    """A stage that gathers a response's text, calls and ciphertext; of further choices nothing."""

    def __init__(self, save: Callable[[str, Sequence[str], str], Awaitable[None]], prior_text: str) -> None:
        self._save = save
        self._text = [prior_text]
        self._call_ids: list[str] = []
        self._ciphertext: list[str] = []
        self._failed = False

    def feed(self, item: Event) -> tuple[Event]:
        if isinstance(item, StreamFailed):
            self._failed = True
        elif getattr(item, "choice", 1) == 0:
            match item:
                case TextDelta(text):
                    self._text.append(text)
                case EncryptedReasoning(text):
                    self._ciphertext.append(text)
                case ToolCallStart():
                    self._call_ids.append(item.id)
        return (item,)

    def close(self) -> tuple[()]:
        return ()

    async def save(self) -> None:
        """Save the ciphertext of a complete response."""
        if self._ciphertext and not self._failed:
            await self._save("".join(self._text), self._call_ids, "".join(self._ciphertext))


def _without(messages: Sequence[JSON]) -> Iterator[tuple[int, str, tuple[str, list[str]]]]:
    """Yield number, question and content of the assistant messages that have no ciphertext."""
    question = ""
    for number, message in enumerate(messages):
        if message.get("role") == "user":
            question = message_rules.text_of(message)
        elif message.get("role") == "assistant" and "encrypted_content" not in message:
            yield number, question, _content(message)


def _content(message: JSON) -> tuple[str, list[str]]:
    calls = message.get("tool_calls")
    ids = [call.get("id") for call in calls if isinstance(call, dict)] if isinstance(calls, list) else []
    return message_rules.text_of(message), [id for id in ids if isinstance(id, str)]
