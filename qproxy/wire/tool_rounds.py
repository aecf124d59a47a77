"""One response of several rounds: the model calls tools, this server runs its own, the model continues.

The pure part: what the client sees of a round (`RoundStage`), the next request (`next_turn`), and how the
hidden part of an earlier response is restored in the history (`restore_history`). `qproxy.relay.tool_loop`
waits, runs and stores.

The client's own calls pass as they come, renumbered without gaps; a round with any of them is the last,
because only the client can continue. Server tool calls are held, text and reasoning of all rounds pass, usage
is summed, and one `ChoiceFinished` ends the response.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from qproxy.wire.events import (
    JSON,
    ChoiceFinished,
    EncryptedReasoning,
    Event,
    ReasoningDelta,
    StreamDone,
    StreamFailed,
    TextDelta,
    ToolCallArgumentsDelta,
    ToolCallStart,
    Turn,
    Usage,
)

TRUNCATED = ("length", "content_filter")


@dataclass(slots=True)
class RoundCall:
    """A call in a round, and its result."""

    id: str
    name: str
    arguments: str = ""
    custom: bool = False
    output: str | None = None
    """The result of a server tool that has run."""


@dataclass
class RoundStage:
    """A stage that separates one round's server tool calls from the client's events."""

    server_calls: Collection[str]
    """The names of the tools that this server runs."""
    client_calls: Collection[str]
    """The names of the client's tools."""
    call_ids: Callable[[int], str]
    """Returns an id for server call number n: the model's ids may repeat between rounds."""
    text_before: Usage = field(default_factory=Usage)
    separates_rounds: bool = False
    """Whether the ciphertext of each round is for the client; otherwise that of the last one."""
    is_last: bool = False
    """Whether server tools are no longer offered."""
    calls: list[RoundCall] = field(default_factory=list)
    sent: list[RoundCall] = field(default_factory=list)
    """The calls that were sent to the client."""
    usage: Usage | None = None
    reason: str | None = None
    matched: str | None = None
    failed: bool = False

    def __post_init__(self) -> None:
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._ciphertext: list[str] = []
        self._by_index: dict[int, tuple[RoundCall, int | None]] = {}

    def feed(self, event: Event) -> Iterable[Event]:
        """Return the events for the client."""
        match event:
            case TextDelta(text):
                self._text.append(text)
            case ReasoningDelta(text):
                self._reasoning.append(text)
            case EncryptedReasoning():
                self._ciphertext.append(event.text)
                if not self.separates_rounds:
                    return []  # of an earlier round it belongs to a message that the client does not get
            case ToolCallStart():
                return self._call(event)
            case ToolCallArgumentsDelta(index, text):
                return self._arguments(index, text)
            case Usage():
                self.usage = event
                return [add_usage(self.text_before, event)]
            case ChoiceFinished():
                self.reason, self.matched = event.reason, event.matched
                return []
            case StreamDone():
                return []
            case StreamFailed():
                self.failed = True
        return [event]

    def close(self) -> list[Event]:
        """Return the end of the response if this round was the last."""
        if self.failed:
            return []
        reason = self.reason or "stop"
        if reason not in TRUNCATED:
            reason = "tool_calls" if self.sent else "stop" if reason == "tool_calls" else reason
        held = [] if self.separates_rounds else self._ciphertext
        ciphertext = [EncryptedReasoning("".join(held))] if held else []
        return [*ciphertext, ChoiceFinished(reason, matched=self.matched), StreamDone()]

    @property
    def pending(self) -> list[RoundCall]:
        """Return the server calls to run: none in a round that failed, was truncated or is the last."""
        if self.failed or self.is_last or self.reason in TRUNCATED:
            return []
        return [call for call in self.calls if call not in self.sent]

    @property
    def text(self) -> str:
        """Return the text of this round."""
        return "".join(self._text)

    def message(self) -> JSON:
        """Return the assistant's message of this round, as the model wrote it."""
        message: JSON = {"role": "assistant", "content": self.text or None}
        if self._reasoning:
            message["reasoning_content"] = "".join(self._reasoning)
        if self._ciphertext:
            message["encrypted_content"] = "".join(self._ciphertext)
        message["tool_calls"] = [_entry(call) for call in self.calls]
        return message

    def results(self) -> list[JSON]:
        """Return the messages with the results of server calls."""
        return [
            {"role": "tool", "tool_call_id": call.id, "content": call.output}
            for call in self.calls
            if call.output is not None
        ]

    def _is_server_tool(self, name: str) -> bool:
        """Return whether this server handles the name; undeclared names go to the client if it has tools."""
        return name in self.server_calls or not self.client_calls

    def _call(self, event: ToolCallStart) -> list[Event]:
        ours = self._is_server_tool(event.name) and not event.custom
        call = RoundCall(
            self.call_ids(len(self.calls)) if ours else event.id, event.name, custom=event.custom
        )
        self.calls.append(call)
        if ours:
            self._by_index[event.index] = call, None
            return []
        index = len(self.sent)
        self.sent.append(call)
        self._by_index[event.index] = call, index
        return [replace(event, index=index)]

    def _arguments(self, index: int, text: str) -> list[Event]:
        call, sent_as = self._by_index[index]
        call.arguments += text
        return [] if sent_as is None else [ToolCallArgumentsDelta(sent_as, text)]


def _entry(call: RoundCall) -> JSON:
    if call.custom:
        return {"id": call.id, "type": "custom", "custom": {"name": call.name, "input": call.arguments}}
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def add_usage(before: Usage, now: Usage) -> Usage:
    """Return the usage of several rounds."""
    return Usage(
        before.prompt_tokens + now.prompt_tokens,
        before.completion_tokens + now.completion_tokens,
        before.total_tokens + now.total_tokens,
        _added(before.prompt_details, now.prompt_details),
        _added(before.completion_details, now.completion_details),
        {**before.extra, **now.extra},
    )


def _added(before: dict[str, JSON], now: dict[str, JSON]) -> dict[str, JSON]:
    """Return summed counts, also of kinds within them; other values are taken from the later usage."""
    added = {**before, **now}
    for name in before.keys() & now.keys():
        if isinstance(before[name], int) and isinstance(now[name], int):
            added[name] = before[name] + now[name]
        elif isinstance(before[name], dict) and isinstance(now[name], dict):
            added[name] = _added(before[name], now[name])
    return added


def next_turn(turn: Turn, done: RoundStage, *, last: bool) -> Turn:
    """Return the next request to the model; a forced choice applies to the first round only."""
    choice = "none" if last else turn.tool_choice if turn.tool_choice in (None, "none") else "auto"
    return replace(
        turn,
        messages=[*turn.messages, done.message(), *done.results()],
        tool_choice=choice,
    )


def with_outputs(messages: Sequence[JSON], outputs: Mapping[str, str | None]) -> list[JSON]:
    """Return the messages with the results of calls, by the call's id."""
    return [
        {**message, "content": outputs[message["tool_call_id"]]}
        if message.get("role") == "tool" and message.get("tool_call_id") in outputs
        else message
        for message in messages
    ]


def restore_history(
    messages: Sequence[JSON], recall: Callable[[tuple[str, ...]], Sequence[JSON] | None]
) -> list[JSON]:
    """Return the history with the hidden rounds of earlier responses in their places.

    `recall` returns the messages before an assistant's message with calls of these ids. The client's own
    calls are taken from its message, because it may have changed them.
    """
    out: list[JSON] = []
    for message in messages:
        ids = call_ids(message)
        hidden = recall(ids) if ids else None
        if hidden is None:
            out.append(message)
        else:
            kept = {call["id"]: call for call in message["tool_calls"]}
            out.extend(_with_calls(one, kept) for one in hidden)
    return out


def call_ids(message: JSON) -> tuple[str, ...]:
    """Return the ids of an assistant's calls."""
    calls = message.get("tool_calls") if message.get("role") == "assistant" else None
    if not isinstance(calls, list):
        return ()
    return tuple(str(call.get("id")) for call in calls if isinstance(call, dict))


def _with_calls(message: JSON, kept: dict[str, JSON]) -> JSON:
    calls = message.get("tool_calls")
    if not calls or not any(call["id"] in kept for call in calls):
        return message
    return {**message, "tool_calls": [kept.get(call["id"], call) for call in calls]}
