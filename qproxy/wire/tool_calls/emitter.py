"""Where the readers of written calls put what they find (`EventEmitter`), and what they may know of the tools (`DeclaredFunctions`).

The sink makes the events: text as `TextDelta` or `ReasoningDelta`, a call as one `RawToolCallDelta` with its name and further
ones with pieces of its arguments.  It also decides about blank text, which belongs to nobody beside a call.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from qproxy.wire.events import JSON, Event, RawToolCallDelta, ReasoningDelta, TextDelta, Turn


def strip_namespace(text: str) -> str:
    """A name without the blanks and quotes that models put around it."""
    return text.strip().strip("\"'").strip()


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

    def is_prefix(self, text: str) -> bool:
        """Whether a declared name begins with `text`, but for quotes and blanks around it."""
        started = strip_namespace(text)
        return any(name.startswith(started) for name in self._schemas)

    def schema(self, name: str) -> Mapping[str, JSON]:
        """The JSON schema of a function's parameters; empty where there is none."""
        schema = self._schemas.get(name)
        return schema if isinstance(schema, dict) else {}

    def properties(self, name: str) -> Mapping[str, JSON]:
        properties = self.schema(name).get("properties")
        return properties if isinstance(properties, dict) else {}


class EventEmitter:
    """The text, the thoughts and the calls of one choice, as events.

    Blank text is held until it is known what it belongs to: next to a call it belongs to nobody.
    """

    MAX_WHITESPACE = 4096

    def __init__(self, turn: Turn, choice: int, repairs: Counter[str]) -> None:
        self.repairs = repairs
        self.events: list[Event] = []
        self.calls = 0
        self.reasoning = False
        """What is said is a thought."""
        self.inline = False
        """... that stood in the text, so that a call ends it."""
        self.truncated = False
        """A call was cut where its arguments cannot show it."""
        self.beside_calls = False
        """Blanks at the end stand beside a call."""
        self.holds_whitespace = True
        self.logprobs: list[JSON] = []
        """Of the text that has not been said yet."""
        self._turn = turn
        self._choice = choice
        self._id = ""
        self._whitespace = ""
        self._run: list[str] = []
        self._arguments: list[str] = []

    def emit_text(self, text: str) -> None:
        """Text of the answer, or of a thought."""
        if self.holds_whitespace:
            text = self._whitespace + text
            if not text.strip() and len(text) <= self.MAX_WHITESPACE:
                self._whitespace = text
                return
            self._whitespace, self.holds_whitespace = "", False
        if text:
            self._write()
            self._run.append(text)

    def _emit(self) -> None:
        """The text so far as one event."""
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
        """A call begins; `dialect` names its spelling, for the count of repairs."""
        self._emit()
        self._write()
        self.repairs[f"written_{dialect}"] += 1
        if self.reasoning:
            self.repairs["call_in_thought"] += 1
            self.reasoning = not self.inline
        self.before_call()
        self._id = self._turn.call_id(self._choice, f"written/{self.calls}")
        self.calls += 1
        self.beside_calls = True
        self.events.append(RawToolCallDelta(None, self._id, name, "", self._choice, True))

    def emit_arguments(self, arguments: str) -> None:
        """A piece of the open call's arguments."""
        if arguments:
            self._arguments.append(arguments)

    def _write(self) -> None:
        """The arguments so far as one event."""
        if self._arguments:
            piece, self._arguments = "".join(self._arguments), []
            self.events.append(RawToolCallDelta(None, self._id, None, piece, self._choice, True))

    def before_call(self) -> None:
        """Forget blanks before a call, and hold those after it."""
        self._whitespace, self.holds_whitespace, self.logprobs = "", True, []

    def finish(self) -> None:
        """The end of a stretch of text or thought: blanks that stand beside no call are said after all."""
        blank, self._whitespace = self._whitespace, ""
        if blank and not self.beside_calls:
            self.holds_whitespace = False
            self.emit_text(blank)
        self.holds_whitespace = True

    def switch_to(self, thought: bool, inline: bool) -> None:
        """What is said from now on is a thought, or is none."""
        self._emit()
        self.reasoning, self.inline = thought, inline

    def drain(self) -> list[Event]:
        self._emit()
        self._write()
        events, self.events = self.events, []
        return events
