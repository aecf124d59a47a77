"""Questions with options, and answers with a probability for each option.

Yes or no, one of several choices, and the levels of a scale are all options; only the encoders of the APIs
tell them apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from qproxy.wire.events import JSON

MAX_QUESTIONS = 400
MAX_OPTIONS = 255


@dataclass(frozen=True, slots=True)
class Option:
    """One option of a question."""

    name: str
    """Unique in the question."""
    value: str | bool | int
    """The client's own value: a choice's, or a level's number."""
    description: str = ""


PREDICATE = (Option("true", True), Option("false", False))
"""The options of a question that is answered with yes or no."""


@dataclass(frozen=True, slots=True)
class Question:
    """One question."""

    id: str
    """Unique in the request."""
    kind: str
    """"predicate", "choice", "score", or another one in System One's form."""
    instructions: str
    options: tuple[Option, ...]
    name: str | None = None
    """The client's name for it."""
    system_one: JSON = None
    """The question as a client wrote it in System One's form."""


@dataclass(frozen=True, slots=True)
class DecisionInput:
    """One request, independent of its API."""

    model: str
    state: JSON
    """What is to be judged: a text, an object, or an array such as a conversation."""
    questions: Sequence[Question]
    params: Mapping[str, JSON] = field(default_factory=dict)
    """Further fields of the request."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to one question."""

    probabilities: tuple[float, ...] | None
    """One for each option; None if the model did not answer."""
    confidence: float | None = None
    """As the model reports it."""
    system_one: JSON = None
    """The answer as a decision model wrote it."""

    def best(self) -> int:
        """Return the index of the most probable option."""
        assert self.probabilities
        return max(range(len(self.probabilities)), key=self.probabilities.__getitem__)

    def certainty(self) -> float:
        """Return the confidence, which without a report is the probability of the best option."""
        assert self.probabilities
        return max(self.probabilities) if self.confidence is None else self.confidence

    def score(self) -> float:
        """Return the mean of the options' numbers, weighted by their probabilities."""
        assert self.probabilities
        return sum(number * share for number, share in enumerate(self.probabilities))


def parts_of(state: JSON) -> Iterator[JSON]:
    """Return the content parts of a state: texts, and images as OpenAI's `input_image`."""
    if isinstance(state, list):
        for item in state:
            if isinstance(item, dict) and "role" in item and "content" in item:
                content = item["content"]
                parts = content if isinstance(content, list) else [content]
                yield f"{item['role']}:"
                yield from map(_part, parts)
            else:
                yield _part(item)
    else:
        yield _part(state)


def _part(value: JSON) -> JSON:
    """Return a part's text, or the part itself."""
    if isinstance(value, dict) and isinstance(value.get("text"), str):
        return value["text"]
    return value
