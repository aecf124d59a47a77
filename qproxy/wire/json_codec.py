"""JSON text: one strict reader and one compact writer for all of `wire`.

RFC 8259 with OpenAI's habits: no NaN or Infinity in (nor a number that Python makes one of), UTF-8 out.  A lone surrogate (a model may cut an
emoji between two deltas) has no UTF-8 form, so a text that holds one is written with `\\u` escapes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from json.decoder import JSONArray, JSONObject  # type: ignore[attr-defined]
from json.scanner import py_make_scanner  # type: ignore[attr-defined]
from typing import Any, NoReturn

MAX_DEPTH = 500
"""Of what servers and models write: what is read may be written again, and both take their depth from one stack."""
MAX_DIGITS = 1000
"""Of an integer: time to read one grows with the square of its length (Python's own limit is 4,300)."""

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
"""Characters; a longer text is read value by value, so that a thread that reads it lets others run (`json` in C does not)."""
MAX_VALUES = 1_000_000
"""In a large text, keys not counted: some 100 bytes of memory each."""
_NESTING = frozenset((dict, list))


class NestingTooDeep(ValueError):
    """JSON or not: it nests deeper than can be read."""


class _ByValue(json.JSONDecoder):
    """A reader of one large text; strings are read in C all the same."""

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
    """Parse JSON text; ValueError (with the position, where there is one) when it is not JSON, TooDeep when it nests too deeply.

    A large text has at most so many `values`, else MAX_VALUES.
    """
    if not isinstance(text, str):
        text = bytes(text).decode("utf-8-sig")  # UnicodeDecodeError is a ValueError
    try:
        if text.startswith("{"):  # hardly ever are there blanks around it
            value, end = _reader(_default_decoder, text, values, **_usually).raw_decode(text)
            if end == len(text):
                return value if end < 2 * MAX_DEPTH else _check_depth(value, text)
        value = _reader(_default_decoder, text, values, **_usually).decode(text)
    except RecursionError:  # each Python has a limit of its own
        raise NestingTooDeep("nested too deeply") from None
    return value if len(text) < 2 * MAX_DEPTH else _check_depth(value, text)


def _check_depth(value: Any, text: str) -> Any:
    """The value of a text, when it can be written again."""
    if text.count("[") + text.count("{") > MAX_DEPTH and exceeds_depth(value, MAX_DEPTH):
        raise NestingTooDeep("nested too deeply")
    return value


def loads_strict(text: str) -> Any:
    """The same for what a client wrote: a number has at most MAX_DIGITS."""
    try:
        return _reader(_strict, text, **_decode_strict).decode(text)
    except RecursionError:
        raise NestingTooDeep("nested too deeply") from None


def strict_reader(text: str) -> json.JSONDecoder:
    """What reads the values of one client's text, for `strictly_at`."""
    return _reader(_strict, text, **_decode_strict)


def loads_strict_at(text: str, position: int, reader: json.JSONDecoder = _strict) -> tuple[Any, int]:
    """The JSON value at `position`, and where it ends; ValueError when there is none."""
    try:
        return reader.raw_decode(text, position)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def exceeds_depth(value: Any, depth: int) -> bool:
    """Whether arrays and objects of JSON that was read are nested more than `depth` deep.

    Level by level, so depth costs no stack.  Only values are looked at, none of their text.
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
    """Compact UTF-8 JSON."""
    text = _write(value)
    try:
        return text.encode()
    except UnicodeEncodeError:
        return _write_ascii(value).encode()


def dumps_spaced(value: Any) -> str:
    """JSON with a space after each comma and colon, as chat templates write it."""
    return _write_spaced(value)


def loads_lenient(text: str) -> Any:
    """Like `loads`, with raw control characters in strings: models write them."""
    try:
        return _check_depth(_reader(_lenient, text, **_decode_strict, strict=False).decode(text), text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def loads_prefix(text: str, position: int) -> tuple[Any, int]:
    """The JSON value at `position`, and where it ends; ValueError when there is none."""
    try:
        value, end = _lenient.raw_decode(text, position)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if end - position >= 2 * MAX_DEPTH and exceeds_depth(value, MAX_DEPTH):
        raise NestingTooDeep("nested too deeply")
    return value, end


def quote(text: str) -> str:
    """A JSON string literal; what is not ASCII stays as it is."""
    return _write(text)
