"""Responses of `/chat/completions` as a client reads them: into events, with violations noted on the way.

Nothing is guessed or repaired: a call begins with the first entry of its index, a later entry adds to it, as
in openai-python. The events are then held to the same rules as qproxy's own (`conformance.events`).

OpenAI's API reference, the chat completion object and the chat completion chunk object.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from qproxy.wire import json_codec
from qproxy.wire.conformance.events import violations
from qproxy.wire.conformance.rules import Violation
from qproxy.wire.events import (
    JSON,
    ChoiceFinished,
    Event,
    ReasoningDelta,
    TextDelta,
    ToolCallArgumentsDelta,
    ToolCallStart,
)

COUNTS = ("prompt_tokens", "completion_tokens", "total_tokens")


@dataclass(slots=True)
class ParsedResponse:
    """The events and violations of a response."""

    events: list[Event] = field(default_factory=list)
    violations: list[Violation] = field(default_factory=list)
    tokens: int = 0
    error: str | None = None
    """The server's error message in place of a response."""

    @property
    def text(self) -> str:
        return "".join(event.text for event in self.events if isinstance(event, TextDelta))

    @property
    def reasoning(self) -> str:
        return "".join(event.text for event in self.events if isinstance(event, ReasoningDelta))

    @property
    def calls(self) -> list[tuple[str, str]]:
        """Return names and arguments, in order."""
        return check_calls(self.events)

    @property
    def finish_reasons(self) -> list[str]:
        return [event.reason for event in self.events if isinstance(event, ChoiceFinished)]

    def note(self, rule: str, text: str) -> None:
        """Add a violation, once."""
        if (breach := Violation(rule, text)) not in self.violations:
            self.violations.append(breach)

    def with_violations(self) -> ParsedResponse:
        """Add the violations of the whole response."""
        if self.error is None:
            for rule, words in violations(self.events):
                self.note(rule, words)
            for name, text in self.calls:
                if (why := non_object_kind(text)) is not None:
                    self.note("arguments", f"those of {name!r:.60} are {why}")
        return self


def check_calls(events: Iterable[Event]) -> list[tuple[str, str]]:
    """Return the names and arguments of the calls among the events."""
    found: dict[tuple[int, int], list[str]] = {}
    for event in events:
        if isinstance(event, ToolCallStart):
            found.setdefault((event.choice, event.index), [event.name, ""])
        elif isinstance(event, ToolCallArgumentsDelta) and (event.choice, event.index) in found:
            found[event.choice, event.index][1] += event.text
    return [(name, text) for name, text in found.values()]


def non_object_kind(text: str) -> str | None:
    """Return a description of arguments that are not the JSON text of an object, else None."""
    try:
        value = json_codec.loads(text)
    except ValueError:
        return "not JSON"
    return None if isinstance(value, dict) else "JSON, but not an object"


def check_response(body: JSON) -> ParsedResponse:
    """Check a whole response."""
    reading = ParsedResponse()
    if _failed(body, reading):
        return reading
    _check_envelope(body, "chat.completion", reading)
    _usage(body.get("usage"), reading)
    choices = body.get("choices")
    if not isinstance(choices, list) or not choices:
        reading.note("message", "choices is not a list with at least one answer")
        return reading
    for position, choice in enumerate(choices):
        message = choice.get("message") if isinstance(choice, dict) else None
        if not isinstance(message, dict):
            reading.note("message", f"choice {position} has no message")
            continue
        if message.get("role") != "assistant":
            reading.note("role", f"it is {message.get('role')!r:.40} instead of assistant")
        if "content" not in message:
            reading.note("message", "the message has no content (it may be null, not absent)")
        reading.events += [*_check_text(message, position), *_whole_calls(message, position, reading)]
        if choice.get("finish_reason") is not None:
            reading.events.append(ChoiceFinished(str(choice["finish_reason"]), position))
    return reading.with_violations()


def check_stream(items: Iterable[str], *, usage: bool) -> ParsedResponse:
    """Check a streamed response, given the data of its events; `usage`: whether usage was requested."""
    reading, sofar = ParsedResponse(), _StreamState()
    frames = list(items)
    if "[DONE]" not in frames:
        reading.note("done", "the stream ends without data: [DONE]")
    elif frames.index("[DONE]") != len(frames) - 1:
        reading.note("done", "something follows data: [DONE]")
    counted = False
    for frame in frames:
        if frame == "[DONE]":
            continue
        try:
            chunk = json_codec.loads(frame)
        except ValueError:
            reading.note("json", f"a chunk is not JSON: {frame[:60]!r}")
            continue
        if _failed(chunk, reading):
            return reading
        counted = _chunk(chunk, sofar, reading, usage, counted)
    if usage and not counted:
        reading.note("usage", "it was requested (stream_options), but the last chunk has none")
    if not sofar.indices:
        reading.note("message", "no chunk has a choice")
    ended = {event.choice for event in reading.events if isinstance(event, ChoiceFinished)}
    for number in sofar.indices.keys() - ended:
        reading.note("finish", f"choice {number} has no finish_reason")
    return reading.with_violations()


class _StreamState:
    """The state of the chunks so far."""

    def __init__(self) -> None:
        self.envelope: tuple[Any, ...] | None = None
        self.indices: dict[int, dict[int, str]] = {}
        """By choice: the indices of its calls, with their ids."""


def _chunk(chunk: Any, sofar: _StreamState, reading: ParsedResponse, usage: bool, counted: bool) -> bool:
    """Check a chunk; return whether the usage has come."""
    _check_envelope(chunk, "chat.completion.chunk", reading)
    envelope = tuple(chunk.get(key) for key in ("id", "created", "model"))
    if sofar.envelope not in (None, envelope):
        reading.note("envelope", "id, created or model change within the stream")
    sofar.envelope = envelope
    choices = chunk.get("choices")
    if not isinstance(choices, list):
        reading.note("message", "a chunk has no list of choices")
        choices = []
    if counted:
        reading.note("usage", "a chunk follows the one with the usage")
    has_usage = chunk.get("usage") is not None
    if has_usage and not usage:
        reading.note("usage", "it was sent without being requested (no stream_options)")
    if has_usage and choices and usage:
        reading.note("usage", "it is in a chunk with choices; it should be in a chunk of its own")
    if not choices and not has_usage:
        reading.note("usage", "a chunk has neither a choice nor usage")
    if has_usage:
        _usage(chunk["usage"], reading)
    for choice in choices:
        _choice(choice, sofar, reading)
    return has_usage and not choices


def _choice(choice: Any, sofar: _StreamState, reading: ParsedResponse) -> None:
    number = choice.get("index") if isinstance(choice, dict) else None
    delta = choice.get("delta") if isinstance(choice, dict) else None
    if not isinstance(number, int) or not isinstance(delta, dict):
        reading.note("message", "a choice has no index or no delta")
        return
    if number not in sofar.indices and delta.get("role") != "assistant":
        reading.note("role", f"the first delta of choice {number} does not have the role assistant")
    known = sofar.indices.setdefault(number, {})
    reading.events += _check_text(delta, number)
    entries = delta.get("tool_calls")
    for entry in entries if isinstance(entries, list) else ():
        reading.events += _entry(entry if isinstance(entry, dict) else {}, number, known, reading)
    if choice.get("finish_reason") is not None:
        reading.events.append(ChoiceFinished(str(choice["finish_reason"]), number))


def _entry(
    entry: dict[str, Any], choice: int, known: dict[int, str], reading: ParsedResponse
) -> Iterator[Event]:
    index, id = entry.get("index"), str(entry.get("id") or "")
    function = entry.get("function")
    function = function if isinstance(function, dict) else {}
    if not isinstance(index, int):
        reading.note("call-index", "a fragment of a call has none")
        index = max(known, default=0)
    if index not in known:
        if entry.get("type") != "function":
            reading.note("call-type", f"call {index} begins with the type {entry.get('type')!r:.40}")
        known[index] = id
        yield ToolCallStart(index, id, str(function.get("name") or ""), choice)
    else:
        if id and id == known[index]:
            reading.note("call-id", f"that of call {index} is sent again in a later fragment")
        elif id:
            reading.note("call-index", f"two calls, {known[index]!r:.40} and {id!r:.40}, share index {index}")
        if function.get("name"):
            reading.note("call-name", f"more of the name of call {index} comes in a later fragment")
    yield from _arguments(function.get("arguments"), index, choice, reading)


def _arguments(value: Any, index: int, choice: int, reading: ParsedResponse) -> Iterator[Event]:
    if isinstance(value, str):
        if value:
            yield ToolCallArgumentsDelta(index, value, choice)
    elif value is not None:
        reading.note("arguments", f"those of call {index} are not text but {type(value).__name__}")


def _whole_calls(message: dict[str, Any], choice: int, reading: ParsedResponse) -> Iterator[Event]:
    entries = message.get("tool_calls")
    if entries == []:
        reading.note("message", "tool_calls is an empty list; it should be absent")
    for index, entry in enumerate(entries if isinstance(entries, list) else ()):
        function = entry.get("function") if isinstance(entry, dict) else None
        if not isinstance(function, dict):
            reading.note("call-type", f"call {index} has no function")
            continue
        if entry.get("type") != "function":
            reading.note("call-type", f"call {index} is of type {entry.get('type')!r:.40}")
        yield ToolCallStart(index, str(entry.get("id") or ""), str(function.get("name") or ""), choice)
        yield from _arguments(function.get("arguments"), index, choice, reading)


def _check_text(message: dict[str, Any], choice: int) -> Iterator[Event]:
    thought = message.get("reasoning_content") or message.get("reasoning")
    if isinstance(thought, str) and thought:
        yield ReasoningDelta(thought, choice)
    if isinstance(message.get("content"), str) and message["content"]:
        yield TextDelta(message["content"], choice)


def _check_envelope(body: Any, kind: str, reading: ParsedResponse) -> None:
    if body.get("object") != kind:
        reading.note("envelope", f"object is {body.get('object')!r:.40} instead of {kind!r}")
    for key, type_ in (("id", str), ("created", int), ("model", str)):
        if not isinstance(body.get(key), type_):
            reading.note("envelope", f"{key} is {body.get(key)!r:.40}")


def _usage(usage: Any, reading: ParsedResponse) -> None:
    values = [usage.get(key) for key in COUNTS] if isinstance(usage, dict) else []
    counts = [count for count in values if isinstance(count, int) and count >= 0]
    if len(counts) != len(COUNTS):
        reading.note("usage", "prompt_tokens, completion_tokens and total_tokens are not three counts")
        return
    prompt, completion, reading.tokens = counts
    if prompt + completion != reading.tokens:
        reading.note("usage", f"total_tokens is {reading.tokens}, not {prompt} and {completion}")


def _failed(body: Any, reading: ParsedResponse) -> bool:
    """Return whether the body is not a response."""
    if not isinstance(body, dict):
        reading.note("json", "it is not an object")
        reading.error = "something that is not a JSON object"
    elif body.get("error"):
        error = body["error"]
        reading.error = str(error.get("message") if isinstance(error, dict) else error)[:300]
    return reading.error is not None
