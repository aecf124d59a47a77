"""The output of the parsers of written calls (`EventEmitter`), and the declared tools (`DeclaredFunctions`).

The emitter makes the events: text as `TextDelta` or `ReasoningDelta`, a call as one `RawToolCallDelta` with
its name and further ones with pieces of its arguments. It also drops whitespace next to a call.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping

from qproxy.wire.events import JSON, Event, RawToolCallDelta, ReasoningDelta, TextDelta, Turn
from qproxy.wire.tool_calls import coercion

NAMESPACE = "functions."
"""The prefix that OpenAI's own prompt format puts before names."""


def strip_quotes(text: str) -> str:
    """Return a name without the whitespace and quotes that models put around it."""
    return text.strip().strip("\"'").strip()


def declared_name(name: str, declared: Collection[str]) -> str:
    """Return the declared function that a name means; models may write it as `functions.NAME` or
    `functions.NAME:0`.
    """
    if name in declared or not name.startswith(NAMESPACE):
        return name
    bare = name.removeprefix(NAMESPACE)
    head, _, number = bare.rpartition(":")
    candidates = (bare, head if number.isdecimal() else bare)
    return next((candidate for candidate in candidates if candidate in declared), name)


class DeclaredFunctions:
    """The functions that the client declared."""

    def __init__(self, turn: Turn) -> None:
        self._schemas: dict[str, JSON] = {
            tool["function"]["name"]: tool["function"].get("parameters")
            for tool in turn.tools
            if tool.get("type") == "function"
        }

    def __contains__(self, name: str) -> bool:
        return name in self._schemas

    def resolve(self, name: str) -> str:
        """Return the declared function that a name means; models may write it as `functions.NAME`."""
        return declared_name(name, self._schemas)

    def is_prefix(self, text: str) -> bool:
        """Return whether a declared name begins with `text`, ignoring quotes and whitespace around it."""
        started = strip_quotes(text)
        bare = started.removeprefix(NAMESPACE)
        return NAMESPACE.startswith(started) or any(name.startswith(bare) for name in self._schemas)

    def schema(self, name: str) -> Mapping[str, JSON]:
        """Return the JSON schema of a function's parameters; empty if it declares none."""
        schema = self._schemas.get(name)
        return schema if isinstance(schema, dict) else {}

    def properties(self, name: str) -> Mapping[str, JSON]:
        properties = self.schema(name).get("properties")
        return properties if isinstance(properties, dict) else {}

    def only_string(self, name: str) -> str | None:
        """Return the one parameter of a function that has no other and takes a string; else None."""
        properties = self.properties(name)
        if len(properties) != 1:
            return None
        key = next(iter(properties))
        allowed = coercion.allowed_types(properties[key], self.schema(name))
        return key if allowed == {"string"} else None


class EventEmitter:
    """The text, the reasoning and the calls of one choice, as events.

    Whitespace is held until it is known what follows: next to a call it is dropped.
    """

    MAX_WHITESPACE = 4096

    def __init__(self, turn: Turn, choice: int, repairs: Counter[str]) -> None:
        self.repairs = repairs
        self.events: list[Event] = []
        self.calls = 0
        self.reasoning = False
        """Whether the text is reasoning."""
        self.inline = False
        """Whether the reasoning was part of the text, so that a call ends it."""
        self.truncated = False
        """Whether a call was truncated where its arguments cannot show it."""
        self.beside_calls = False
        """Whether whitespace at the end is next to a call."""
        self.after_call = False
        """Whether no text has come since the last call."""
        self.string_parameter: str | None = None
        """The one parameter of the open call's function, if it takes a string."""
        self.holds_whitespace = True
        self.logprobs: list[JSON] = []
        """Log probabilities of the text that has not been emitted."""
        self._turn = turn
        self._choice = choice
        self._id = ""
        self._whitespace = ""
        self._run: list[str] = []
        self._arguments: list[str] = []

    def emit_text(self, text: str) -> None:
        """Emit text of the response or of reasoning."""
        if self.holds_whitespace:
            text = self._whitespace + text
            if not text.strip() and len(text) <= self.MAX_WHITESPACE:
                self._whitespace = text
                return
            self._whitespace, self.holds_whitespace, self.after_call = "", False, False
        if text:
            self._write()
            self._run.append(text)

    def _emit(self) -> None:
        """Write the text so far as one event."""
        if not self._run:
            return
        text, self._run = "".join(self._run), []
        if self.reasoning:
            self.events.append(ReasoningDelta(text, self._choice))
            return
        logprobs = {"content": self.logprobs, "refusal": None} if self.logprobs else None
        self.logprobs = []
        self.events.append(TextDelta(text, self._choice, logprobs))

    def begin_call(self, name: str, dialect: str) -> None:
        """Begin a call; `dialect` is the kind of repair to count."""
        self._emit()
        self._write()
        self.repairs[f"written_{dialect}"] += 1
        in_reasoning = self.reasoning
        if in_reasoning:
            self.repairs["call_in_thought"] += 1
            self.reasoning = not self.inline
        self.before_call()
        self._id = self._turn.call_id(self._choice, f"written/{self.calls}")
        self.calls += 1
        self.beside_calls = True
        self.events.append(RawToolCallDelta(None, self._id, name, "", self._choice, True, in_reasoning))

    def emit_arguments(self, arguments: str) -> None:
        """Emit a piece of the open call's arguments."""
        if arguments:
            self._arguments.append(arguments)

    def _write(self) -> None:
        """Write the arguments so far as one event."""
        if self._arguments:
            piece, self._arguments = "".join(self._arguments), []
            self.events.append(RawToolCallDelta(None, self._id, None, piece, self._choice, True))

    def before_call(self) -> None:
        """Drop whitespace before a call, and hold whitespace after it."""
        self._whitespace, self.holds_whitespace, self.logprobs = "", True, []
        self.after_call = True

    def finish(self) -> None:
        """End a stretch of text or reasoning: emit held whitespace unless it is next to a call."""
        blank, self._whitespace = self._whitespace, ""
        if blank and not self.beside_calls:
            self.holds_whitespace = False
            self.emit_text(blank)
        self.holds_whitespace = True

    def switch_to(self, thought: bool, inline: bool) -> None:
        """Start or end reasoning."""
        self._emit()
        self.reasoning, self.inline = thought, inline

    def drain(self) -> list[Event]:
        self._emit()
        self._write()
        events, self.events = self.events, []
        return events
