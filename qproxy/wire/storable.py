"""Foreign text and numbers, in a form that every store, header and sum accepts.

JSON allows more than they do: text with a lone surrogate has no UTF-8 form, a NUL ends text in some
databases, an integer may have any number of digits, and true is a number in Python. A name is rejected where
it enters (`validation.identifier`), or replaced where no error can be sent; an upstream's count is read by
`parse_count`.
"""

from __future__ import annotations

from qproxy.wire.events import JSON

MAX_COUNT = 100_000_000
"""Ten times the tokens of Qwen's longest context (2026); 90 billion of these can be summed in 64 bits."""
MAX_SECONDS = 2**53 - 1
"""The last Unix second that a double represents exactly."""


def is_storable_text(text: str) -> bool:
    """Return whether every store accepts the text: it has a UTF-8 form and no NUL."""
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
    """Return the text with a question mark for each character that some stores reject."""
    return value if is_storable_text(value) else value.replace("\0", "?").encode("utf-8", "replace").decode()


def parse_count(value: JSON, limit: int = MAX_COUNT) -> int:
    """Return a JSON value as a count from 0 to `limit`; 0 if it is not a count."""
    if type(value) is int or (
        isinstance(value, float) and value >= 0
    ):  # 5.0, as JavaScript writes it; no NaN
        return int(min(max(value, 0), limit))
    return 0


def is_finite_number(value: JSON) -> bool:
    """Return whether a JSON value is a number that a double holds."""
    return (type(value) is int or isinstance(value, float)) and abs(value) <= 1.7e308
