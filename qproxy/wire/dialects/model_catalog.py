"""Qwen's published models and their limits: what to list where a server lists nothing, and what to clamp to.

Tokens.  From Qwen's model pages and qwen-code's presets (autumn 2026).  A model that is not here is not
limited here: servers know best, this table only spares a round trip.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

_M = 1_000_000


@dataclass(frozen=True, slots=True)
class Limits:
    """What a model can take and give, in tokens."""

    context: int
    output: int
    thinks: bool = False
    """Thinking is on unless switched off."""
    old: bool = False
    """Before structured output: `json_schema` is refused, JSON mode and thinking exclude each other."""


MODELS: dict[str, Limits] = {
    "qwen3.8-max": Limits(_M, 131_072, thinks=True),
    "qwen3.8-flash": Limits(_M, 131_072, thinks=True),
    "qwen3.7-max": Limits(_M, 65_536, thinks=True),
    "qwen3.7-plus": Limits(_M, 65_536, thinks=True),
    "qwen3.7-flash": Limits(_M, 65_536, thinks=True),
    "qwen3.6-plus": Limits(_M, 65_536, thinks=True, old=True),
    "qwen3.6-flash": Limits(_M, 65_536, thinks=True, old=True),
    "qwen3.6-max-preview": Limits(262_144, 65_536, thinks=True, old=True),
    "qwen3.5-plus": Limits(_M, 65_536, thinks=True, old=True),
    "qwen3.5-flash": Limits(_M, 65_536, thinks=True, old=True),
    "qwen3-max": Limits(262_144, 65_536, old=True),
    "qwen3-coder-plus": Limits(_M, 65_536, old=True),
    "qwen3-coder-flash": Limits(_M, 65_536, old=True),
    "qwen3-coder-next": Limits(262_144, 65_536, old=True),
    "qwen-plus": Limits(_M, 32_768, old=True),
    "qwen-flash": Limits(_M, 32_768, old=True),
    "qwen-turbo": Limits(131_072, 16_384, old=True),
    "qwen-max": Limits(32_768, 8_192, old=True),
    "qwen3-vl-plus": Limits(262_144, 32_768, old=True),
    "qwq-plus": Limits(131_072, 8_192, thinks=True, old=True),
}


EMBEDDING = ("text-embedding-v4", "text-embedding-v3")
"""They have no output to limit."""


LINES = ("qwen", "qwq-", "qvq-", "text-embedding-v")
"""How the names of Qwen's own models begin, also of those to come."""


def names(*, embedding: bool = False) -> Iterable[str]:
    """The models worth listing, with or without those that embed."""
    return (*MODELS, *(EMBEDDING if embedding else ()))


def is_qwen(model: str) -> bool:
    """Whether a name is that of one of Qwen's models, published or to come."""
    return model.lower().startswith(LINES)


def lookup(model: str) -> Limits | None:
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
