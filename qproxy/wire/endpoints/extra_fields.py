"""Fold the fields that qproxy does not know, as the deltas of a stream add up to those of a whole
response."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable
from itertools import chain

from qproxy.wire.events import JSON

MAX_DEPTH = 8
"""Levels of objects that are folded; below that the last value wins."""
_REPLACED = frozenset(("id", "type", "format", "index", "name", "model", "role", "url"))
"""Names of strings that identify something: a later one replaces an earlier one."""


def fold_fields(deltas: Iterable[dict[str, JSON]], depth: int = MAX_DEPTH) -> dict[str, JSON]:
    """Return the sum of some deltas: texts and lists are joined, objects folded, other values replaced."""
    columns: dict[str, list[JSON]] = {}
    for fields in deltas:
        for name, value in fields.items():
            columns.setdefault(name, []).append(value)
    return {name: _fold(name, values, depth) for name, values in columns.items()}


def _fold(name: str, values: list[JSON], depth: int) -> JSON:
    if len(values) > 1 and depth:
        if all(isinstance(value, dict) for value in values):
            return fold_fields(values, depth - 1)
        if all(isinstance(value, list) for value in values):
            return list(chain.from_iterable(values))
        if name not in _REPLACED and all(isinstance(value, str) for value in values):
            return _join_base64(values) if name == "data" else "".join(values)
    return values[-1]


def _join_base64(pieces: list[str]) -> str:
    """Join base64 texts, each of which may end with padding."""
    try:
        return base64.b64encode(b"".join(base64.b64decode(piece, validate=True) for piece in pieces)).decode()
    except (binascii.Error, ValueError):
        return "".join(pieces)
