"""Units of usage beside tokens."""

from __future__ import annotations

from collections.abc import Iterable

UNITS = ("characters", "seconds", "images", "documents", "searches")
"""Columns of the ledger: characters spoken, seconds of sound heard, pictures made, documents ranked, searches
of the web."""


def has_usage(prefix: str = "", names: Iterable[str] = ("prompt_tokens", "completion_tokens", *UNITS)) -> str:
    """Return the SQL expression of whether a request used anything that has a price."""
    return f"{' + '.join(prefix + name for name in names)} > 0"


def sums(template: str) -> str:
    """Return the template with `{unit}` replaced by each unit, joined by commas."""
    return ", ".join(template.format(unit=unit) for unit in UNITS)
