"""The secrets among the settings: the values of the fields that a repr hides."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any


def secret_values(record: Any) -> Iterator[str]:
    """Yield the secrets of a record of settings, and of the records in it."""
    for item in dataclasses.fields(record):
        value = getattr(record, item.name)
        values = value if isinstance(value, list | tuple) else [value]
        for entry in values:
            if dataclasses.is_dataclass(entry):
                yield from secret_values(entry)
            elif not item.repr and isinstance(entry, dict):
                yield from entry.values()
            elif not item.repr and isinstance(entry, str):
                yield entry
