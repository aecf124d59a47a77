"""A stage that moves requested JSON out of the reasoning.

Some servers apply a grammar (`response_format`) from the first token on, and their reasoning parser then
takes all of the JSON for reasoning: the content stays empty. Reasoning that begins with a brace or a bracket
(or a code block) is held, with blank text after it; if it is one JSON value of the requested type and the
response ends without anything else, it is the content.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from qproxy.wire import json_codec
from qproxy.wire.events import (
    JSON,
    ChoiceFinished,
    Event,
    RawToolCallDelta,
    ReasoningDelta,
    StreamDone,
    StreamFailed,
    TextDelta,
    Turn,
)
from qproxy.wire.tool_calls.code_fences import without_fence
from qproxy.wire.tool_calls.json_state import JSONState

MAX_HELD = 1024 * 1024
"""Characters of reasoning held to see whether they are all of a response; a longer one is reasoning."""


def requests_json(turn: Turn) -> bool:
    """Return whether the client requested JSON by `response_format`."""
    requested = turn.params.get("response_format")
    return isinstance(requested, dict) and requested.get("type") in ("json_schema", "json_object")


class _Choice:
    """The held reasoning of one choice."""

    def __init__(self) -> None:
        self.held: list[ReasoningDelta | TextDelta] = []
        self.is_holding = True
        self._state = JSONState()
        self._start = ""
        self._size = 0

    def hold(self, item: ReasoningDelta | TextDelta) -> bool:
        """Hold more reasoning, or blank text; return whether it may still be all of a response."""
        self.held.append(item)
        self._size += len(item.text)
        if isinstance(item, TextDelta):
            return True
        self._start = self._start or item.text.lstrip()[:1]
        if self._start not in ("", "{", "[", "`") or self._size > MAX_HELD:
            return False
        self._state.read_until_end(item.text)
        return self._start in ("", "`") or not self._state.is_broken

    def text(self) -> str:
        """Return the held reasoning without a code block or an end of reasoning around it."""
        text = "".join(item.text for item in self.held if isinstance(item, ReasoningDelta))
        return without_fence(text.strip().removesuffix("</think>"))

    def release(self) -> list[ReasoningDelta | TextDelta]:
        """Return the held reasoning, and hold no more."""
        held, self.held, self.is_holding = self.held, [], False
        return held


class JSONInReasoningStage:
    """A stage that passes JSON in the place of reasoning on as the content that the client requested."""

    def __init__(self, turn: Turn, repairs: Counter[str]) -> None:
        self._schema = _schema(turn)
        self._repairs = repairs
        self._choices: dict[int, _Choice] = {}

    def feed(self, item: Event) -> Iterable[Event]:
        if isinstance(item, ReasoningDelta):
            choice = self._choices.setdefault(item.choice, _Choice())
            if not choice.is_holding:
                return (item,)
            return () if choice.hold(item) else choice.release()
        if isinstance(item, TextDelta | RawToolCallDelta):
            choice = self._choices.setdefault(item.choice, _Choice())
            if isinstance(item, TextDelta) and not item.text.strip() and choice.is_holding and choice.held:
                choice.hold(item)
                return ()
            return [*choice.release(), item]
        if isinstance(item, ChoiceFinished) and item.reason not in ("", "null"):
            return [*self._end(item.choice), item]
        if isinstance(item, StreamDone):
            return [*(out for number in self._choices for out in self._end(number)), item]
        if isinstance(item, StreamFailed):
            return [*self.close(), item]
        return (item,)

    def _end(self, number: int) -> Iterator[Event]:
        """Yield the held reasoning of a choice that ends, as content if it is the requested JSON."""
        choice = self._choices.get(number)
        text = choice.text() if choice is not None and choice.is_holding else ""
        held = choice.release() if choice is not None else []
        if held and self._fits(text):
            self._repairs["json_in_reasoning"] += 1
            yield TextDelta(text, number)
        else:
            yield from held

    def _fits(self, text: str) -> bool:
        try:
            value = json_codec.loads_lenient(text)
        except ValueError:
            return False
        if not isinstance(value, dict):
            return isinstance(value, list) and self._schema.get("type") == "array"
        required = self._schema.get("required")
        return self._schema.get("type", "object") == "object" and all(
            key in value for key in (required if isinstance(required, list) else ()) if isinstance(key, str)
        )

    def close(self) -> Iterator[Event]:
        for choice in self._choices.values():
            yield from choice.release()


def _schema(turn: Turn) -> dict[str, JSON]:
    """Return the requested JSON schema; empty if the request has none."""
    requested = turn.params.get("response_format")
    nested = requested.get("json_schema") if isinstance(requested, dict) else None
    schema = nested.get("schema") if isinstance(nested, dict) else None
    return schema if isinstance(schema, dict) else {}
