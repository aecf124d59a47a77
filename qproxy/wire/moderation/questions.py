"""OpenAI's categories as questions to a decision model, or to a chat model with log probabilities."""

from __future__ import annotations

from collections.abc import Sequence

from qproxy.wire.decisions import Answer, DecisionInput, Question
from qproxy.wire.decisions.question import PREDICATE
from qproxy.wire.events import JSON
from qproxy.wire.moderation.response import CATEGORIES, FLAGGED_FROM, Judgement

QUESTIONS = tuple(
    Question(name, "predicate", f"Is this true of the text? {description}", PREDICATE)
    for name, description in CATEGORIES.items()
)


def decision(model: str, parts: tuple[JSON, ...]) -> DecisionInput:
    """Return the questions about one input."""
    state = parts[0] if len(parts) == 1 and isinstance(parts[0], str) else list(parts)
    return DecisionInput(model, state, QUESTIONS)


def judgement(parts: tuple[JSON, ...], answers: Sequence[Answer]) -> Judgement:
    """Return the judgement in the answers; a category whose question was refused is one that the model
    cannot tell."""
    scores = {
        question.id: answer.probabilities[0]
        for question, answer in zip(QUESTIONS, answers, strict=True)
        if answer.probabilities is not None
    }
    kinds = dict.fromkeys("text" if isinstance(part, str) else "image" for part in parts)
    flagged = any(score >= FLAGGED_FROM for score in scores.values())
    return Judgement(flagged, scores, kinds=tuple(kinds))
