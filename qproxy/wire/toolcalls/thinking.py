"""Thoughts that a server left in the text: `<think>...</think>` at the start of an answer becomes Reasoning.

Only there: a `<think>` in the middle of an answer is text about thinking.  Whether an answer begins *inside* a
thought (its `<think>` was part of the prompt) cannot be told from the bytes, so it is a model's profile.
The blank run on each side of `</think>` belongs to nobody.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from qproxy.wire.events import Event, Failed, Finish, Reasoning, Text, ToolCallDelta

_OPEN, _CLOSE = "<think>", "</think>"


def _held_prefix(text: str, marker: str) -> int:
    """How many characters at the end of `text` may be the beginning of `marker`."""
    for size in range(min(len(marker) - 1, len(text)), 0, -1):
        if text.endswith(marker[:size]):
            return size
    return 0


class _Choice:
    """Where one choice stands: at its start, in a thought, after one, or in its text."""

    def __init__(self, implied: bool) -> None:
        self.state = "thought" if implied else "start"
        self.implied = implied
        self.held = ""
        self.blank = True
        """Nothing of the thought has been passed on yet: blanks before it are dropped."""

    def feed(self, text: str) -> Iterator[tuple[type[Text] | type[Reasoning], str]]:
        text = self.held + text
        self.held = ""
        if self.state == "start" or (self.state == "thought" and self.implied):
            text = self._opening(text)
        if self.state == "thought" and text:
            if self.blank:
                text = text.lstrip()
                self.blank = not text
            thought, closer, rest = text.partition(_CLOSE)
            if closer:
                self.state = "after"
                if thought.rstrip():
                    yield Reasoning, thought.rstrip()
                text = rest
            else:
                keep = len(text) - _held_prefix(text, _CLOSE)
                keep = len(text[:keep].rstrip())  # a blank run before the closer is dropped
                self.held = text[keep:]
                if keep:
                    yield Reasoning, text[:keep]
                return
        if self.state == "after":
            text = text.lstrip()
            if text:
                self.state = "text"
        if text and self.state == "text":
            yield Text, text

    def _opening(self, text: str) -> str:
        """Decide whether the answer begins with `<think>`; hold while it may."""
        bare = text.lstrip()
        if bare.startswith(_OPEN):
            self.state, self.implied = "thought", False
            return bare.removeprefix(_OPEN)
        if _OPEN.startswith(bare) and (bare or len(text) < 64):
            self.held = text
            return ""
        self.state = "thought" if self.implied else "text"
        self.implied = False
        return text

    def flush(self) -> Iterator[tuple[type[Text] | type[Reasoning], str]]:
        held, self.held = self.held, ""
        if held and self.state == "thought" and held.strip():
            yield Reasoning, held.rstrip()
        elif held and self.state == "start":
            yield Text, held


class Thinking:
    """The stage."""

    def __init__(self, implied: bool, repairs: Counter[str]) -> None:
        self._implied = implied
        self._repairs = repairs
        self._choices: dict[int, _Choice] = {}

    def feed(self, item: Event) -> Iterator[Event]:
        if isinstance(item, Text):
            choice = self._choices.get(item.choice)
            if choice is None:
                choice = self._choices[item.choice] = _Choice(self._implied)
            if choice.state == "text":
                yield item
                return
            for kind, text in choice.feed(item.text):
                if kind is Reasoning:
                    self._repairs["think_tag"] += 1
                yield Text(text, item.choice, item.logprobs) if kind is Text else Reasoning(text, item.choice)
            return
        if isinstance(item, Finish | ToolCallDelta):
            yield from self._flush(item.choice)
        elif isinstance(item, Failed):
            for number in self._choices:
                yield from self._flush(number)
        elif isinstance(item, Reasoning) and self._implied and item.choice not in self._choices:
            self._choices[item.choice] = _Choice(False)  # the server splits thoughts itself
        yield item

    def _flush(self, number: int) -> Iterator[Event]:
        choice = self._choices.get(number)
        if choice is not None:
            for kind, text in choice.flush():
                yield kind(text, number)

    def close(self) -> Iterator[Event]:
        for number in self._choices:
            yield from self._flush(number)
