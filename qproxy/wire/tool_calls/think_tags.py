"""A stage that turns `<think>...</think>` at the start of the text into reasoning.

Only there: a `<think>` later on is text about thinking. The bytes cannot show whether a response begins
*inside* reasoning (its `<think>` was part of the prompt), so that is a model's profile. Whitespace around
`</think>` is dropped.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from qproxy.wire.events import (
    JSON,
    ChoiceFinished,
    Event,
    RawToolCallDelta,
    ReasoningDelta,
    StreamFailed,
    TextDelta,
)

_OPEN, _CLOSE = "<think>", "</think>"
MAX_WHITESPACE = 64
"""Whitespace characters at the start of a response held to see whether reasoning begins after them."""
MAX_TAIL = 512
"""Characters of text after interrupted reasoning held to see whether a closing tag ends them."""
MAX_RUN = 4096
"""Whitespace characters in reasoning held to see whether it ends after them."""


def _held_prefix(text: str, marker: str) -> int:
    """Return how many characters at the end of `text` may begin `marker`."""
    for size in range(min(len(marker) - 1, len(text)), 0, -1):
        if text.endswith(marker[:size]):
            return size
    return 0


class _Choice:
    """The state of one choice: at its start, in reasoning, after it, or in its text."""

    def __init__(self, implied: bool) -> None:
        self.state = "thought" if implied else "start"
        self.implied = implied
        self.held = ""
        self.structured = False
        """Whether the server separates reasoning itself: whitespace of its text is kept."""
        self.long_run = False
        """Whether a run of whitespace too long to be held is being passed on."""
        self.started = False
        """Whether text of the response has been passed on."""
        self.is_interrupted = False
        """Whether separated reasoning stopped in the middle of a sentence: its end may follow as text."""
        self.logprobs: list[JSON] = []
        """Log probabilities of the held text."""
        self.whitespace = True
        """Whether no reasoning has been passed on yet: whitespace before it is dropped."""

    def feed(self, text: str) -> Iterator[tuple[type[TextDelta] | type[ReasoningDelta], str]]:
        text = self.held + text
        self.held = ""
        if self.state == "start" or (self.state == "thought" and self.implied):
            text = self._opening(text)
        if self.state == "after":
            text = self._after(text)
        if self.state == "tail":
            split = self._tail(text)
            if split is None:
                return
            reasoning, text = split
            if reasoning:
                yield ReasoningDelta, reasoning
        if self.state == "thought" and text:
            if self.whitespace:
                text = text.lstrip()
                self.whitespace = not text
            thought, closer, rest = text.partition(_CLOSE)
            if closer:
                self.state = "after"
                thought = thought[: self._without_run(thought)]
                if thought:
                    yield ReasoningDelta, thought
                text = rest
            else:
                keep = self._without_run(text[: len(text) - _held_prefix(text, _CLOSE)])
                self.held = text[keep:]
                if keep:
                    yield ReasoningDelta, text[:keep]
                return
            text = self._after(text)
        if text and self.state == "text":
            self.started = True
            yield TextDelta, text

    def _without_run(self, text: str) -> int:
        """Return the length without trailing whitespace, which is dropped before a closing tag; a long run
        is kept.
        """
        bare = len(text.rstrip())
        self.long_run = (self.long_run and not bare) or len(text) - bare > MAX_RUN
        return len(text) if self.long_run else bare

    def _after(self, text: str) -> str:
        """Drop a second closing tag after reasoning, and hold whitespace until other text follows.

        A server that separates reasoning may still leave tags at the start of the text.
        """
        bare = text.lstrip()
        while bare.startswith(_CLOSE):
            self.structured = False
            text = bare.removeprefix(_CLOSE)
            bare = text.lstrip()
        opens = self.structured and not self.started
        if opens and bare.startswith(_OPEN):
            self.state, self.structured = "thought", False
            return bare.removeprefix(_OPEN)
        may_come = _CLOSE.startswith(bare) or (opens and _OPEN.startswith(bare))
        if may_come and len(text) - len(bare) <= MAX_WHITESPACE:
            self.held = text
            return ""
        continues = self.is_interrupted or (text[:1] == " " and text[1:2].isalnum())
        is_tail = self.structured and not self.started and continues and text[0] not in "\r\n"
        self.state = "tail" if is_tail else "text"
        return text if self.structured else bare

    def _tail(self, text: str) -> tuple[str, str] | None:
        """Split the end of interrupted reasoning, up to its closing tag, off the text; None while more may
        come.

        A server that enforces a reasoning budget writes the last sentence and the tag itself, and its parser
        may take them for text.
        """
        tail, closer, rest = text.partition(_CLOSE)
        if not closer:
            tail = text[: len(text) - _held_prefix(text, _CLOSE)]
        if len(tail) > MAX_TAIL or "\n\n" in tail.rstrip("\n"):
            self.state = "text"
            return "", text
        if not closer:
            self.held = text
            return None
        self.state, self.structured, self.is_interrupted = "after", False, False
        return tail.rstrip(), self._after(rest)

    def _opening(self, text: str) -> str:
        """Decide whether the response begins with `<think>`; hold text while it may."""
        bare = text.lstrip()
        blank = len(text) - len(bare)
        if bare.startswith(_OPEN) and blank <= MAX_WHITESPACE:
            self.state, self.implied = "thought", False
            return bare.removeprefix(_OPEN)
        if _OPEN.startswith(bare) and blank <= MAX_WHITESPACE:
            self.held = text
            return ""
        self.state = "thought" if self.implied else "text"
        self.implied = False
        return text

    def flush(self) -> Iterator[tuple[type[TextDelta] | type[ReasoningDelta], str]]:
        held, self.held = self.held, ""
        if held and self.state == "tail":
            self.state = "text"
            yield TextDelta, held
        elif held and self.state == "thought" and held.strip():
            yield ReasoningDelta, held.rstrip()
        elif held and (
            self.state == "start" or (self.state == "after" and (self.structured or held.strip()))
        ):
            yield TextDelta, held if self.structured or self.state == "start" else held.lstrip()


class ThinkTagParser:
    """A stage that separates inline reasoning from the text of every choice."""

    def __init__(self, implied: bool, repairs: Counter[str]) -> None:
        self._implied_think = implied
        self._repairs = repairs
        self._choices: dict[int, _Choice] = {}

    def feed(self, item: Event) -> Iterable[Event]:
        if isinstance(item, TextDelta | RawToolCallDelta):  # the usual case
            choice = self._choices.get(item.choice)
            if choice is not None and choice.state == "text":
                choice.started = choice.started or isinstance(item, TextDelta)
                return (item,)
        return self._decide(item)

    def _decide(self, item: Event) -> Iterator[Event]:
        if isinstance(item, TextDelta):
            choice = self._choices.get(item.choice)
            if choice is None:
                choice = self._choices[item.choice] = _Choice(self._implied_think)
            if isinstance(item.logprobs, dict):
                choice.logprobs += item.logprobs.get("content") or []
            for kind, text in choice.feed(item.text):
                yield self._emit(choice, kind, text, item.choice)
            return
        if isinstance(item, RawToolCallDelta):
            choice = self._choices.setdefault(item.choice, _Choice(False))
            if choice.state == "after" and not choice.held.strip():
                choice.held = ""  # whitespace between reasoning and a call is dropped
            yield from self._flush(item.choice)
            choice.state = "text"
        elif isinstance(item, ChoiceFinished):
            yield from self._flush(item.choice)
        elif isinstance(item, StreamFailed):
            for number in self._choices:
                yield from self._flush(number)
        elif isinstance(item, ReasoningDelta):
            choice = self._choices.setdefault(item.choice, _Choice(False))
            if choice.state == "tail" and item.text:  # the server separates again: what is held was text
                yield from self._flush(item.choice)
                choice.started = True
            if choice.state in ("start", "text"):
                choice.state, choice.structured = "after", True
            if bare := item.text.rstrip():
                choice.is_interrupted = len(bare) == len(item.text) and bare[-1].isalnum()
            elif item.text:
                choice.is_interrupted = False
        yield item

    def _emit(
        self, choice: _Choice, kind: type[TextDelta] | type[ReasoningDelta], text: str, number: int
    ) -> Event:
        if kind is ReasoningDelta:
            self._repairs["think_tag"] += 1
            choice.logprobs = []  # OpenAI's are those of the content
            return ReasoningDelta(text, number, inline=True)
        logprobs = {"content": choice.logprobs, "refusal": None} if choice.logprobs else None
        choice.logprobs = []
        return TextDelta(text, number, logprobs)

    def _flush(self, number: int) -> Iterator[Event]:
        choice = self._choices.get(number)
        if choice is not None:
            for kind, text in choice.flush():
                yield self._emit(choice, kind, text, number)

    def close(self) -> Iterator[Event]:
        for number in self._choices:
            yield from self._flush(number)
