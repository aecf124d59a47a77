"""Qwen's published models and their limits: what to list where a server lists nothing, and what to clamp to.

Tokens.  From Qwen's model pages and qwen-code's presets (autumn 2026).  A model that is not here is not
limited here: servers know best, this table only spares a round trip.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

_M = 1_000_000


@dataclass(frozen=True, slots=True)
class ModelLimits:
    """What a model can take and give, in tokens."""

    context: int
    output: int
    can_think: bool = False
    """Thinking is on unless switched off."""
    is_legacy: bool = False
    """Before structured output: `json_schema` is refused, JSON mode and thinking exclude each other."""


MODELS: dict[str, ModelLimits] = {
    "qwen3.8-max": ModelLimits(_M, 131_072, can_think=True),
    "qwen3.8-flash": ModelLimits(_M, 131_072, can_think=True),
    "qwen3.7-max": ModelLimits(_M, 65_536, can_think=True),
    "qwen3.7-plus": ModelLimits(_M, 65_536, can_think=True),
    "qwen3.7-flash": ModelLimits(_M, 65_536, can_think=True),
    "qwen3.6-plus": ModelLimits(_M, 65_536, can_think=True, is_legacy=True),
    "qwen3.6-flash": ModelLimits(_M, 65_536, can_think=True, is_legacy=True),
    "qwen3.6-max-preview": ModelLimits(262_144, 65_536, can_think=True, is_legacy=True),
    "qwen3.5-plus": ModelLimits(_M, 65_536, can_think=True, is_legacy=True),
    "qwen3.5-flash": ModelLimits(_M, 65_536, can_think=True, is_legacy=True),
    "qwen3-max": ModelLimits(262_144, 65_536, is_legacy=True),
    "qwen3-coder-plus": ModelLimits(_M, 65_536, is_legacy=True),
    "qwen3-coder-flash": ModelLimits(_M, 65_536, is_legacy=True),
    "qwen3-coder-next": ModelLimits(262_144, 65_536, is_legacy=True),
    "qwen-plus": ModelLimits(_M, 32_768, is_legacy=True),
    "qwen-flash": ModelLimits(_M, 32_768, is_legacy=True),
    "qwen-turbo": ModelLimits(131_072, 16_384, is_legacy=True),
    "qwen-max": ModelLimits(32_768, 8_192, is_legacy=True),
    "qwen3-vl-plus": ModelLimits(262_144, 32_768, is_legacy=True),
    "qwq-plus": ModelLimits(131_072, 8_192, can_think=True, is_legacy=True),
}


EMBEDDING = ("text-embedding-v4", "text-embedding-v3")
"""They have no output to limit."""


QWEN_PREFIXES = ("qwen", "qwq-", "qvq-", "text-embedding-v")
"""How the names of Qwen's own models begin, also of those to come."""


def model_names(*, embedding: bool = False) -> Iterable[str]:
    """The models worth listing, with or without those that embed."""
    return (*MODELS, *(EMBEDDING if embedding else ()))


def is_qwen(model: str) -> bool:
    """Whether a name is that of one of Qwen's models, published or to come."""
    return model.lower().startswith(QWEN_PREFIXES)


def limits_for(model: str) -> ModelLimits | None:
    """A model's limits, by its name or by the name without a dated suffix (`qwen-plus-2025-07-28`)."""
    name = model.lower()
    while name:
        if name in MODELS:
            return MODELS[name]
        head, dash, tail = name.rpartition("-")
        if not dash or not (tail.isdecimal() or tail == "latest"):
            return None
        name = head
    return None
