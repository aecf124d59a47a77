"""JSON text: one strict reader and one compact writer for all of `wire`.

RFC 8259 with OpenAI's habits: no NaN or Infinity (nor a number that overflows to one), UTF-8 out. A lone
surrogate (a model may split an emoji between two deltas) has no UTF-8 form, so text that holds one is written
with `\\u` escapes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from json.decoder import JSONArray, JSONObject  # type: ignore[attr-defined]
from json.scanner import py_make_scanner  # type: ignore[attr-defined]
from typing import Any, NoReturn

MAX_DEPTH = 500
"""Maximum depth of upstream JSON: parsed values are written again, and both use the same stack."""
MAX_DIGITS = 1000
"""Maximum digits of an integer: parsing is quadratic in its length (Python's own limit is 4,300)."""

_write = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode
_write_spaced = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode
_write_ascii = json.JSONEncoder(ensure_ascii=True, separators=(",", ":"), allow_nan=False).encode


def _reject_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"the number {text[:40]} is too large")
    return value


def _int(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError(f"a number has {len(text)} digits")
    return int(text)


_decode_strict: dict[str, Any] = {
    "parse_constant": _reject_constant,
    "parse_float": _float,
    "parse_int": _int,
}
_strict = json.JSONDecoder(**_decode_strict)
_usually: dict[str, Any] = {"parse_constant": _reject_constant, "parse_float": _float}
_default_decoder = json.JSONDecoder(**_usually)
_lenient = json.JSONDecoder(**_decode_strict, strict=False)


LARGE = 128 * 1024
"""Characters; a longer text is read value by value, so that other threads can run (`json` in C does not
yield).
"""
MAX_VALUES = 1_000_000
"""Maximum number of values in a large text, excluding keys: about 100 bytes of memory each."""
_NESTING = frozenset((dict, list))


class NestingTooDeep(ValueError):
    """The text is nested deeper than can be read."""


class _ByValue(json.JSONDecoder):
    """A reader of one large text; strings are still read in C."""

    def __init__(self, values: int, **hooks: Any) -> None:
        super().__init__(**hooks)
        self._values = self._left = values
        self.parse_object = self._object
        self.parse_array = self._array
        self.scan_once = self._counted(py_make_scanner(self))

    def _object(self, started: Any, strict: bool, scan_once: Any, *hooks: Any) -> Any:
        return JSONObject(started, strict, self._counted(scan_once), *hooks)

    def _array(self, started: Any, scan_once: Any) -> Any:
        return JSONArray(started, self._counted(scan_once))

    def _counted(self, scan_once: Any) -> Callable[[str, int], Any]:
        def scan(text: str, position: int) -> Any:
            self._left -= 1
            if self._left < 0:
                raise ValueError(f"more than {self._values} values")
            return scan_once(text, position)

        return scan


def _reader(
    decoder: json.JSONDecoder, text: str, values: int | None = None, **hooks: Any
) -> json.JSONDecoder:
    return decoder if len(text) <= LARGE else _ByValue(MAX_VALUES if values is None else values, **hooks)


def loads(text: str | bytes, values: int | None = None) -> Any:
    """Parse JSON text.

    A large text has at most `values` values, by default MAX_VALUES. Raises ValueError (with the position, if
    known) if it is not JSON, and NestingTooDeep if it is nested too deeply.
    """
    if not isinstance(text, str):
        text = bytes(text).decode("utf-8-sig")  # UnicodeDecodeError is a ValueError
    try:
        if text.startswith("{"):  # whitespace around it is rare
            value, end = _reader(_default_decoder, text, values, **_usually).raw_decode(text)
            if end == len(text):
                return value if end < 2 * MAX_DEPTH else _check_depth(value, text)
        value = _reader(_default_decoder, text, values, **_usually).decode(text)
    except RecursionError:  # each Python version has its own limit
        raise NestingTooDeep("nested too deeply") from None
    return value if len(text) < 2 * MAX_DEPTH else _check_depth(value, text)


def _check_depth(value: Any, text: str) -> Any:
    """Return the value of a text if it can be written again."""
    if text.count("[") + text.count("{") > MAX_DEPTH and exceeds_depth(value, MAX_DEPTH):
        raise NestingTooDeep("nested too deeply")
    return value


def loads_strict(text: str) -> Any:
    """Parse JSON text that a client wrote, with at most MAX_DIGITS digits in a number."""
    try:
        return _reader(_strict, text, **_decode_strict).decode(text)
    except RecursionError:
        raise NestingTooDeep("nested too deeply") from None


def strict_reader(text: str) -> json.JSONDecoder:
    """Return a decoder for the values of one client's text, for `loads_strict_at`."""
    return _reader(_strict, text, **_decode_strict)


def loads_strict_at(text: str, position: int, reader: json.JSONDecoder = _strict) -> tuple[Any, int]:
    """Return the JSON value at `position` and its end; raise ValueError if it is invalid."""
    try:
        return reader.raw_decode(text, position)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def exceeds_depth(value: Any, depth: int) -> bool:
    """Return whether arrays and objects are nested more than `depth` deep.

    Works level by level, so depth costs no stack, and reads only values, no text.
    """
    level = [value] if isinstance(value, dict | list) else []
    while level:
        if depth == 0:
            return True
        depth -= 1
        inner = (item.values() if isinstance(item, dict) else item for item in level)
        level = [one for values in inner for one in values if type(one) in _NESTING]
    return False


def dumps(value: Any) -> bytes:
    """Return compact UTF-8 JSON."""
    text = _write(value)
    try:
        return text.encode()
    except UnicodeEncodeError:
        return _write_ascii(value).encode()


def dumps_spaced(value: Any) -> str:
    """Return JSON with a space after each comma and colon, as chat templates write it."""
    return _write_spaced(value)


def loads_lenient(text: str) -> Any:
    """Parse JSON text with raw control characters in strings, as models write them."""
    try:
        return _check_depth(_reader(_lenient, text, **_decode_strict, strict=False).decode(text), text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def loads_prefix(text: str, position: int) -> tuple[Any, int]:
    """Return the JSON value at `position` and its end; raise ValueError if it is invalid."""
    try:
        value, end = _lenient.raw_decode(text, position)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if end - position >= 2 * MAX_DEPTH and exceeds_depth(value, MAX_DEPTH):
        raise NestingTooDeep("nested too deeply")
    return value, end


def quote(text: str) -> str:
    """Return a JSON string literal; non-ASCII characters stay unescaped."""
    return _write(text)
