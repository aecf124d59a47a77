"""Text and numbers of strangers, in a form that every store, header and sum takes.

JSON allows more than they do: text with half of a surrogate pair has no UTF-8 form, a NUL ends a text in some
databases, an integer may have any number of digits, and true is a number to Python.  What names something is refused
where it enters (`validation.identifier`), or replaced where nobody can be told; what an upstream counts is read by `parse_count`.
"""

from __future__ import annotations

from qproxy.wire.events import JSON

MAX_COUNT = 100_000_000
"""Ten times the tokens of the longest context that Qwen sells (2026); 90 billion of these can be summed in 64 bits."""
MAX_SECONDS = 2**53 - 1
"""The last of the Unix seconds that a double tells apart."""


def is_storable_text(text: str) -> bool:
    """Return whether every store takes the text: it has a UTF-8 form and no NUL."""
    if "\0" in text:
        return False
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def storable_text(value: str) -> str:
    """Return the text with a question mark for each character that not every store takes."""
    return value if is_storable_text(value) else value.replace("\0", "?").encode("utf-8", "replace").decode()


def parse_count(value: JSON, limit: int = MAX_COUNT) -> int:
    """Return how many a JSON value says, from 0 to `limit`; 0 for what is not a count."""
    if type(value) is int or (
        isinstance(value, float) and value >= 0
    ):  # 5.0, as JavaScript writes it; no NaN
        return int(min(max(value, 0), limit))
    return 0


def is_finite_number(value: JSON) -> bool:
    """Return whether a JSON value is a number that a double holds."""
    return (type(value) is int or isinstance(value, float)) and abs(value) <= 1.7e308
