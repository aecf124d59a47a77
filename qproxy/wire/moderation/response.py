"""OpenAI's response to a moderation, honest about the categories that the model cannot tell.

Such a category is false with a score of 0, and its `category_applied_input_types` is empty. The model's own
words are in the result's `qproxy` object.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from qproxy.wire.events import JSON

FLAGGED_FROM = 0.5
CATEGORIES = {
    "harassment": "It harasses, insults or bullies a person.",
    "harassment/threatening": "It harasses a person and threatens violence or serious harm.",
    "hate": "It promotes hate because of race, gender, ethnicity, religion, nationality, orientation, "
    "disability or caste.",
    "hate/threatening": "It is hateful and threatens violence or serious harm to such a group.",
    "illicit": "It gives advice or instructions for an illegal act.",
    "illicit/violent": "It gives advice or instructions for a violent illegal act or for a weapon.",
    "self-harm": "It promotes or depicts suicide, self-injury or an eating disorder.",
    "self-harm/instructions": "It gives instructions or advice for self-harm.",
    "self-harm/intent": "Its author intends to harm themselves, or does so.",
    "sexual": "It is meant to arouse sexually, or promotes sexual services.",
    "sexual/minors": "It has sexual content with a person under 18 years.",
    "violence": "It depicts death, violence or physical injury.",
    "violence/graphic": "It depicts death, violence or physical injury in graphic detail.",
}
"""OpenAI's categories, in its order."""
OF_IMAGES = ("self-harm", "sexual", "violence")
"""The first parts of categories that OpenAI applies to images, except sexual/minors."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """A model's opinion of one input."""

    flagged: bool
    scores: Mapping[str, float]
    """By category; one that the model cannot tell is missing."""
    details: dict[str, JSON] = field(default_factory=dict)
    """The model's own words."""
    kinds: tuple[str, ...] = ("text",)
    """What was judged: text, image."""


def response(model: str, judgements: Sequence[Judgement], id: str) -> JSON:
    """Return the body: one result for each input."""
    return {"id": id, "model": model, "results": [_result(judgement) for judgement in judgements]}


def _result(judgement: Judgement) -> JSON:
    scores = judgement.scores
    result: dict[str, JSON] = {
        "flagged": judgement.flagged,
        "categories": {name: scores.get(name, 0.0) >= FLAGGED_FROM for name in CATEGORIES},
        "category_scores": {name: scores.get(name, 0.0) for name in CATEGORIES},
        "category_applied_input_types": {
            name: _applied(name, judgement.kinds) if name in scores else [] for name in CATEGORIES
        },
    }
    return {**result, "qproxy": judgement.details} if judgement.details else result


def _applied(category: str, kinds: tuple[str, ...]) -> list[str]:
    with_images = category.partition("/")[0] in OF_IMAGES and category != "sexual/minors"
    return [kind for kind in kinds if kind == "text" or with_images]
