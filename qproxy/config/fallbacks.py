"""`[[fallbacks]]` tables."""

from __future__ import annotations

from dataclasses import dataclass, field

CAUSES = ("quota", "overload", "context", "content_filter", "retired")
"""The errors after which another model may serve a request."""


@dataclass(frozen=True)
class FallbackConfig:
    """A `[[fallbacks]]` table: models that serve a request whose own model cannot, in this order."""

    model: str
    """A model or a pattern of models, as in `fnmatch`."""
    models: list[str]
    on: list[str] = field(default_factory=lambda: list(CAUSES))
