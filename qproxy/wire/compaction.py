"""Conversations that are too long: summarized by the model itself, or without their oldest messages.

The pure part: the request for a summary (`summary_turn`), what of a conversation is summarized and what stays
as it is (`split_messages`), the conversation that goes on from a summary (`Summary.messages`), and a shorter
one (`shorten`). `qproxy.relay.compaction` sends and seals.

A `Summary` stands for the conversation before it. One that the client requested replaces the model's
messages and calls, and the client decides which of its own messages it still sends. One that this server
added to a response (`is_whole`) replaces everything but the instructions, and contains the messages that the
model still gets as they were.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from qproxy.wire import json_codec
from qproxy.wire.context_overflow import ContextOverflow
from qproxy.wire.events import JSON, Turn
from qproxy.wire.token_estimate import prompt_size
from qproxy.wire.token_ratios import TOKENS_PER_IMAGE

INSTRUCTION_ROLES = ("system", "developer")
BYTES_PER_IMAGE = 4 * TOKENS_PER_IMAGE
KEPT_SHARE = 4
"""The messages that stay as they are take at most 1/4 of the threshold."""
UNKNOWN_SHARE = 0.5
"""The share of a prompt that remains where its server does not report how much too long it is."""
MIN_CLIPPED = 2000
"""Characters of a text that is not cut for a summary."""
FITTING_SHARE = 0.9
"""The share of the room in a context that a shortened prompt takes: its tokens are estimated."""
DROPPED_PARAMS = (
    "response_format", "max_tokens", "max_completion_tokens", "stop", "n", "logprobs", "top_logprobs",
    "verbosity", "web_search_options", "enable_search", "search_options",
)  # fmt: skip
"""Parameters of the response that do not apply to a summary."""

PROMPT = """\
Do not answer the messages above. Write a summary of this conversation that replaces it: the work continues \
with your summary alone, so everything that is still needed must be in it. Write, in this order and only \
where there is something to write:

1. What the user wants: every request that is not finished, in the user's own words, with all constraints \
and preferences.
2. What is done: decisions with their reasons, and changes, with exact names, paths, commands and values.
3. What is known: facts, results of tools, errors and how they were solved. Quote exactly what must not be \
looked up again.
4. What is next: the current step, and the remaining ones.

Write plain text, call no tools, and add no greeting and no remark about the summary itself."""
HEADER = """\
The conversation before this message was replaced by the following summary of it. Continue from there: do \
not repeat finished work, and do not mention the summary.

"""


@dataclass(frozen=True, slots=True)
class Summary:
    """The content of a compaction item."""

    text: str
    is_whole: bool = False
    """Whether it replaces the client's messages too."""
    kept: tuple[JSON, ...] = ()
    """The messages that follow it as they were."""
    settings: tuple[JSON, ...] = ()
    """The endpoint's items that are no messages and stay in effect."""

    def messages(self) -> list[JSON]:
        """Return the chat messages that stand for the conversation before it."""
        return [{"role": "user", "content": HEADER + self.text}, *self.kept]

    def to_json(self) -> str:
        fields = {"summary": self.text, "whole": self.is_whole, "kept": self.kept, "settings": self.settings}
        return json_codec.dumps(fields).decode()


def summary_from_json(text: str) -> Summary:
    """Return a summary that `Summary.to_json` wrote."""
    fields = json_codec.loads(text.encode())
    return Summary(fields["summary"], fields["whole"], tuple(fields["kept"]), tuple(fields["settings"]))


def summary_turn(turn: Turn) -> Turn:
    """Return the request for a summary of a turn's conversation.

    The messages stay as they are in front, so that the server's prompt cache has them.
    """
    return replace(
        turn,
        id=f"{turn.id}/summary",
        messages=[*turn.messages, {"role": "user", "content": PROMPT}],
        tool_choice="none" if turn.tools else None,
        params={name: value for name, value in turn.params.items() if name not in DROPPED_PARAMS},
        summarize_reasoning=False,
        server_tools=(),
        web_search=None,
        context=None,
        raw_fields=None,
        token_estimate=turn.token_estimate.resized(prompt_size(turn)),
    )


def compacted_turn(turn: Turn, summary: Summary) -> Turn:
    """Return the turn that goes on from a summary of its conversation."""
    instructions = [message for message in turn.messages if _is_instruction(message)]
    shorter = replace(turn, messages=[*instructions, *summary.messages()], context=None, raw_fields=None)
    return replace(shorter, token_estimate=turn.token_estimate.resized(prompt_size(shorter)))


def split_messages(turn: Turn, threshold: int) -> tuple[Turn, tuple[JSON, ...]] | None:
    """Return the turn to summarize, and the messages that stay as they are; None if that is all.

    What follows the last message of the user stays, with that message, where it is short; otherwise only that
    message does.
    """
    messages, limit = turn.messages, threshold // KEPT_SHARE
    last = _last_user_message(messages)
    if last is None:
        return turn, ()
    is_short, is_first = _tokens(turn, messages[last:]) <= limit, all(map(_is_instruction, messages[:last]))
    if is_first and (is_short or last == len(messages) - 1):
        return None
    if is_short:
        return replace(turn, messages=messages[:last]), tuple(messages[last:])
    return turn, (messages[last],) if _tokens(turn, messages[last : last + 1]) <= limit else ()


def shorten(turn: Turn, overflow: ContextOverflow | None) -> Turn | None:
    """Return the turn without its oldest messages, so that it should fit; None if there is nothing to drop.

    Instructions and the last message of the user stay, and at least the newest message; a tool's result goes
    with its call.
    """
    messages, asked = turn.messages, _last_user_message(turn.messages)
    sizes = [_size(turn, [message]) for message in messages]
    stays = [_is_instruction(message) or number == asked for number, message in enumerate(messages)]
    tools = prompt_size(replace(turn, messages=())).text_bytes
    room = _fitting_share(overflow) * (tools + sum(sizes)) - tools
    room -= sum(size for size, is_fixed in zip(sizes, stays, strict=True) if is_fixed)
    first = len(messages)
    for number in reversed(range(len(messages))):
        room -= 0 if stays[number] else sizes[number]
        if room < 0 and first < len(messages):
            break
        if messages[number].get("role") != "tool":
            first = number
    kept = [message for number, message in enumerate(messages) if number >= first or stays[number]]
    if len(kept) == len(messages):
        return None
    shorter = replace(turn, messages=kept, raw_fields=None)
    return replace(shorter, token_estimate=turn.token_estimate.resized(prompt_size(shorter)))


def clip(turn: Turn, overflow: ContextOverflow | None) -> Turn | None:
    """Return the turn with long texts cut in their middle, so that it should fit; None if none is long.

    For a summary of what cannot be dropped: a file that a tool has read, or that the user has pasted.
    """
    share = _fitting_share(overflow)
    messages = [_clipped(message, share) for message in turn.messages]
    if all(after is before for after, before in zip(messages, turn.messages, strict=True)):
        return None
    return replace(turn, messages=messages, raw_fields=None)


def _clipped(message: JSON, share: float) -> JSON:
    content = message.get("content")
    if _is_instruction(message) or not isinstance(content, str) or len(content) <= MIN_CLIPPED:
        return message
    half = max(MIN_CLIPPED, int(len(content) * share)) // 2
    left_out = len(content) - 2 * half
    return {**message, "content": f"{content[:half]}\n[{left_out} characters left out]\n{content[-half:]}"}


def _is_instruction(message: JSON) -> bool:
    return message.get("role") in INSTRUCTION_ROLES


def _last_user_message(messages: Sequence[JSON]) -> int | None:
    numbers = (n for n in reversed(range(len(messages))) if messages[n].get("role") == "user")
    return next(numbers, None)


def _fitting_share(overflow: ContextOverflow | None) -> float:
    """Return the share of a rejected prompt that should fit."""
    if overflow is None or overflow.limit is None or overflow.prompt is None:
        return UNKNOWN_SHARE
    room = overflow.limit - (overflow.answer or 0)
    return min(FITTING_SHARE, max(0.0, FITTING_SHARE * room / overflow.prompt))


def _tokens(turn: Turn, messages: Sequence[JSON]) -> int:
    """Return about how many tokens some messages of a turn have."""
    return turn.token_estimate.resized(prompt_size(_only(turn, messages))).prompt


def _size(turn: Turn, messages: Sequence[JSON]) -> int:
    """Return about how many bytes messages have, images as text."""
    size = prompt_size(_only(turn, messages))
    return size.text_bytes + size.images * BYTES_PER_IMAGE


def _only(turn: Turn, messages: Sequence[JSON]) -> Turn:
    return replace(turn, messages=messages, tools=(), tools_bytes=None)
