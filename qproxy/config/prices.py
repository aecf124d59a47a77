"""`[[prices]]` tables."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PriceConfig:
    """A `[[prices]]` table: money for a million tokens of one model, or for a million of other units."""

    model: str
    input: float | None = None
    output: float | None = None
    cached: float | None = None
    characters: float | None = None
    """Of text that is spoken."""
    seconds: float | None = None
    """Of sound that is transcribed."""
    images: float | None = None
    documents: float | None = None
    """That are ranked."""
    searches: float | None = None
    currency: str = "USD"
    """Another one than US dollars needs a rate in `exchange_rates`."""
