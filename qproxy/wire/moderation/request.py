"""`POST /v1/moderations`: one result per text, or one for all parts of an input with images.

Names of OpenAI's moderation models stand for the operator's (`moderation_model`). Source: openai-python 3.57.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from qproxy.wire.endpoints import validation
from qproxy.wire.endpoints.request_schemas import NAME, object_schema
from qproxy.wire.events import JSON

MAX_INPUTS = 1000
OPENAI_MODELS = ("omni-moderation-*", "text-moderation-*")
SCHEMA: JSON = object_schema(
    ["input"],
    {"model": NAME, "input": {"type": ["string", "array"], "items": {"type": ["string", "object"]}}},
)


@dataclass(frozen=True, slots=True)
class ModerationInput:
    """One request."""

    model: str
    inputs: Sequence[tuple[JSON, ...]]
    """The parts of each input: texts, and images as OpenAI's `input_image`."""
    body: Mapping[str, JSON] = field(default_factory=dict)
    """The client's own body, which other servers get."""

    @property
    def ignored(self) -> tuple[str, ...]:
        """Return the fields that no model can be asked about."""
        return tuple(sorted(name for name in self.body if name not in ("model", "input")))


def decode(body: JSON, default_model: str | None) -> ModerationInput:
    """Return the validated request. Raises RequestError naming the invalid field."""
    fields = validation.check_fields(validation.body(body), {"model": validation.identifier})
    model = fields.get("model")
    if model is None or any(fnmatchcase(model, pattern) for pattern in OPENAI_MODELS):
        model = default_model
    if not model:
        validation.wrong_value(
            "model", "name a model of this server, or set moderation_model for requests that name none."
        )
    if "input" not in fields:
        validation.missing("input")
    return ModerationInput(model, _inputs(fields["input"]), fields)


def _inputs(value: JSON) -> list[tuple[JSON, ...]]:
    if isinstance(value, str):
        return [(value,)]
    items = validation.array(value, "input")
    if not 1 <= len(items) <= MAX_INPUTS:
        validation.wrong_value("input", f"expected 1 to {MAX_INPUTS:,} entries, but got {len(items):,}.")
    if isinstance(items[0], str):
        return [(validation.string(item, f"input[{number}]"),) for number, item in enumerate(items)]
    return [tuple(_part(item, f"input[{number}]") for number, item in enumerate(items))]


def _part(value: JSON, path: str) -> JSON:
    part = validation.object_(value, path)
    if part.get("type") == "text":
        return validation.string(part.get("text"), f"{path}.text")
    validation.one_of(("text", "image_url"))(part.get("type"), f"{path}.type")
    image = validation.object_(part.get("image_url"), f"{path}.image_url")
    return {"type": "input_image", "image_url": validation.string(image.get("url"), f"{path}.image_url.url")}
