"""`[[prices]]` tables."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PriceConfig:
    """A `[[prices]]` table: US dollars for a million tokens of one model."""

    model: str
    input: float
    output: float
    cached: float | None = None
