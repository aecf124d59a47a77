"""Repairs of a conversation's order: what chat templates and servers refuse about roles, and about calls and
results.

Each takes the messages and returns a new list, or the same one if nothing changed. What a repair does to a
message depends on the messages up to the next answer of the model alone, so that two consecutive turns of a
conversation begin with the same prompt, or no prefix cache would hit.

Sources: the chat templates of Qwen3.5 and newer ("System message must be at the beginning.", "Unexpected
message role.", "No user query found in messages."), Model Studio's chat reference (tool messages follow the
calls that they answer).
"""

from __future__ import annotations

from collections.abc import Sequence

from qproxy.wire.dialects.message_rules import Messages, join_contents, other_parts, text_of
from qproxy.wire.events import JSON
from qproxy.wire.system_reminder import as_reminder

NO_RESULT = "This call has no result: it was interrupted, or its result is not part of the conversation."
NO_CALL = "The result of an earlier tool call that is not part of the conversation:"
NO_QUESTION = "Continue."


def _leading(messages: Messages) -> int:
    """Return how many system messages a conversation begins with."""
    return next((number for number, m in enumerate(messages) if m.get("role") != "system"), len(messages))


def join_leading_system(messages: Messages) -> Messages:
    """Join the system messages at the start; parts (with their cache markers) stay parts."""
    count = _leading(messages)
    if count < 2:
        return messages
    return [{**messages[0], "content": join_contents(messages[:count])}, *messages[count:]]


def system_to_reminder(messages: Messages) -> Messages:
    """Return each later system message as a user message in its place."""
    count = _leading(messages)
    if not any(message.get("role") == "system" for message in messages[count:]):
        return messages
    later = [
        _reminder(message) if message.get("role") == "system" else message for message in messages[count:]
    ]
    return [*messages[:count], *later]


def _reminder(message: dict[str, JSON]) -> dict[str, JSON]:
    return {**message, "role": "user", "content": _with_text(as_reminder(text_of(message)), message)}


def _with_text(text: str, message: dict[str, JSON]) -> JSON:
    """Return `text` as the content of a message in place of its own text, before its other parts."""
    others = other_parts(message)
    return [{"type": "text", "text": text}, *others] if others else text


def add_user_message(messages: Messages) -> Messages:
    """Return a conversation that has no user message with one, after its system messages."""
    if any(message.get("role") == "user" for message in messages):
        return messages
    count = _leading(messages)
    return [*messages[:count], {"role": "user", "content": NO_QUESTION}, *messages[count:]]


def answer_calls(messages: Messages) -> Messages:
    """Return the results of each call directly after it, with a note as the result of one that has none.

    Only results before the model's next answer are moved: the model knew of no later one when it gave that
    answer.
    """
    out: list[JSON] = []
    start = 0
    while start < len(messages):
        end = next(
            (n for n in range(start + 1, len(messages)) if messages[n].get("role") == "assistant"),
            len(messages),
        )
        out += _answered(messages[start], messages[start + 1 : end])
        start = end
    same = len(out) == len(messages) and all(new is old for new, old in zip(out, messages, strict=True))
    return messages if same else out


def _answered(message: JSON, following: Sequence[JSON]) -> list[JSON]:
    """Return a message and those before the next answer, the results of its calls first."""
    wanted = call_ids(message)
    if not wanted:
        return [message, *following]
    found: dict[JSON, JSON] = {}
    others = []
    for entry in following:
        answered = entry.get("tool_call_id") if entry.get("role") == "tool" else None
        if answered in wanted and answered not in found:
            found[answered] = entry
        else:
            others.append(entry)
    missing = [name for name in wanted if name not in found]
    notes = [{"role": "tool", "tool_call_id": name, "content": NO_RESULT} for name in missing]
    return [message, *found.values(), *notes, *others]


def call_ids(message: JSON) -> list[str]:
    """Return the ids of a message's calls."""
    calls = message.get("tool_calls") if message.get("role") == "assistant" else None
    ids = [call.get("id") for call in calls or ()]
    return [name for name in ids if isinstance(name, str) and name]


def orphan_results(messages: Messages) -> Messages:
    """Return each tool result that no call right before it asks for as a user message in its place."""
    out: list[JSON] = []
    open_calls: set[str] = set()
    for message in messages:
        if message.get("role") != "tool":
            open_calls = set(call_ids(message))
        elif message.get("tool_call_id") in open_calls:
            open_calls.discard(message["tool_call_id"])
        else:
            text = f"{NO_CALL}\n{text_of(message)}"
            message = {"role": "user", "content": _with_text(text, message)}
        out.append(message)
    same = all(new is old for new, old in zip(out, messages, strict=True))
    return messages if same else out
