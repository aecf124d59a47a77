"""Transcripts: texts of recordings, and the times of their sentences and words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qproxy.wire.events import Usage


@dataclass(frozen=True, slots=True)
class Word:
    """A word with its punctuation, and its times in seconds."""

    text: str
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class Sentence:
    """A sentence, and its times in seconds."""

    text: str
    start: float
    end: float
    speaker: str | None = None
    """The model's name for who speaks."""
    words: Sequence[Word] = ()


@dataclass(frozen=True, slots=True)
class Transcript:
    """The text of a recording, with sentences if the model gives their times."""

    text: str
    language: str | None = None
    """A code such as "en"; None if the model does not tell."""
    sentences: Sequence[Sentence] = ()
    seconds: float | None = None
    usage: Usage | None = None

    @property
    def duration(self) -> float:
        """Return the seconds of the recording, as far as they are known."""
        return self.seconds or max((sentence.end for sentence in self.sentences), default=0.0)

    @property
    def has_all_times(self) -> bool:
        """Return whether the sentences are the whole text."""
        return _letters("".join(one.text for one in self.sentences)) == _letters(self.text)

    def speakers(self) -> dict[str | None, str]:
        """Return OpenAI's labels (A, B, ...) of the model's names of speakers, in order of appearance."""
        names = dict.fromkeys(sentence.speaker for sentence in self.sentences)
        return {name: _label(number) for number, name in enumerate(names)}


def _letters(text: str) -> str:
    return "".join(filter(str.isalnum, text))


def _label(number: int) -> str:
    return (_label(number // 26 - 1) if number >= 26 else "") + chr(ord("A") + number % 26)
