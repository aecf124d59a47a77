"""Fallback models: which other model may serve a request whose own model failed before its first event.

A rule names the models that it is for, the causes that it covers, and the models to try in their order. The
data of a model exclude it where they show that it cannot serve the request: tools, media, the length of the
prompt. What is not known of a model does not exclude it, because the operator has chosen it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from qproxy.access.rate_limits import output_limit
from qproxy.wire.dialects.error_mapping import CONTEXT_EXCEEDED
from qproxy.wire.errors import LimitKind, QproxyError
from qproxy.wire.events import Turn
from qproxy.wire.models import ModelSpec

RETIRED = "retired"
MEDIA = {
    "image_url": "image",
    "video_url": "video",
    "video": "video",
    "input_audio": "audio",
    "file": "file",
}
"""What a model must accept, by the types of content parts."""


@dataclass(frozen=True, slots=True)
class FallbackRule:
    """The models that replace those of a pattern after some causes."""

    pattern: str
    models: tuple[str, ...]
    causes: frozenset[str]

    def covers(self, model: str, cause: str) -> bool:
        """Return whether the rule is for a model and a cause."""
        return cause in self.causes and fnmatchcase(model.lower(), self.pattern.lower())


def fallback_models(rules: Sequence[FallbackRule], names: Sequence[str], cause: str) -> tuple[str, ...]:
    """Return the models of the first rule for one of a request's names of its model, none without a rule."""
    found = (rule for rule in rules if any(rule.covers(name, cause) for name in names))
    return next((rule.models for rule in found), ())


def cause_of(error: QproxyError, *, is_known: bool) -> str | None:
    """Return the cause that an error is, None for one that another model would not help.

    `is_known` is whether the catalog knows the model: only then is its absence a retirement, and not a typing
    error of the client.
    """
    limit = getattr(error, "limit", LimitKind.NONE)
    if error.code == CONTEXT_EXCEEDED:
        return "context"
    if error.code == "content_filter":
        return "content_filter"
    if limit in (LimitKind.QUOTA, LimitKind.FREE) or error.type == "insufficient_quota":
        return "quota"
    if error.code == "model_not_found":
        return RETIRED if is_known else None
    return "overload" if error.status == 429 or error.status >= 500 else None


def can_serve(spec: ModelSpec, turn: Turn, prompt_tokens: int) -> bool:
    """Return whether nothing that is known of a model excludes a request."""
    if spec.tasks is not None and not spec.is_for("chat"):
        return False
    if turn.tools_enabled and spec.tools is False:
        return False
    if spec.inputs is not None and not set(_media(turn)) <= set(spec.inputs):
        return False
    modalities = turn.params.get("modalities")
    if isinstance(modalities, list) and "audio" in modalities and "audio" not in (spec.outputs or ["audio"]):
        return False
    return spec.context is None or prompt_tokens + output_limit(turn) <= spec.context


def _media(turn: Turn) -> Iterator[str]:
    """Yield the kinds of media in the messages."""
    for message in turn.messages:
        content = message.get("content") if isinstance(message, dict) else None
        for part in content if isinstance(content, list) else ():
            kind = part.get("type") if isinstance(part, dict) else None
            if isinstance(kind, str) and kind in MEDIA:
                yield MEDIA[kind]
