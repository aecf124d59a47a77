"""Convert values that a model wrote as plain text by the declared JSON schema (Qwen3-Coder's parameters).

string only, undeclared, no schema   the text unchanged integer, number                      if the text is
one; 5.0 is the integer 5, 1e999 and nan stay text boolean                              true, false, True,
False, 1, 0; never a guess object, array                        JSON, else a Python literal; models see
Python's syntax in their prompts null allowed                         null and None, in any case several types
the first that matches of null, integer, number, boolean, object, array, string
"""

from __future__ import annotations

import ast
import math
import re
import warnings
from collections.abc import Iterator, Mapping

from qproxy.wire import json_codec
from qproxy.wire.events import JSON
from qproxy.wire.tool_calls.json_strings import ControlCharEscaper

_INTEGER = re.compile(r"[+-]?[0-9]{1,4000}\Z")
_NUMBER = re.compile(r"[+-]?(?:[0-9]++(?:\.[0-9]*+)?|\.[0-9]++)(?:[eE][+-]?[0-9]++)?\Z")
_BOOLEANS = {"true": "true", "True": "true", "1": "true", "false": "false", "False": "false", "0": "false"}
_PYTHON = {
    str: "string",
    bool: "boolean",
    int: "integer",
    float: "number",
    dict: "object",
    list: "array",
    type(None): "null",
}
_PYTHON_WORDS = {
    "str": "string", "text": "string", "bool": "boolean", "int": "integer", "float": "number",
    "dict": "object",
    "list": "array", "tuple": "array", "none": "null",
}  # fmt: skip
"""Names of types that hand-written schemas use in place of JSON Schema's."""
MAX_LITERAL = 64 * 1024
_MAX_DEPTH = 8
MAX_NODES = 256
"""Maximum number of subschemas of one parameter, and of items of one list, that are read."""


def allowed_types(schema: JSON, root: Mapping[str, JSON]) -> set[str]:
    """Return the JSON types that a schema allows; empty if it names none.

    Reads at most MAX_NODES subschemas in all, because a `$ref` lets a short schema unfold without end.
    """
    return _allowed_types(schema, root, 0, iter(range(MAX_NODES)))


def _allowed_types(schema: JSON, root: Mapping[str, JSON], depth: int, budget: Iterator[int]) -> set[str]:
    if not isinstance(schema, dict) or depth > _MAX_DEPTH or next(budget, None) is None:
        return set()
    reference = schema.get("$ref")
    if isinstance(reference, str):
        return _allowed_types(_resolve(reference, root), root, depth + 1, budget)
    declared = schema.get("type")
    found = (
        {declared}
        if isinstance(declared, str)
        else {one for one in _first_items(declared) if isinstance(one, str)}
    )
    for key in ("anyOf", "oneOf", "allOf"):
        for branch in _first_items(schema.get(key)):
            found |= _allowed_types(branch, root, depth + 1, budget)
    if not found and isinstance(schema.get("enum"), list):
        found = {_PYTHON.get(type(value), "string") for value in _first_items(schema["enum"])}
    if not found and "const" in schema:
        found = {_PYTHON.get(type(schema["const"]), "string")}
    if not found:
        found = {kind for key, kind in (("properties", "object"), ("items", "array")) if key in schema}
    if found and schema.get("nullable") is True:
        found.add("null")
    return {_PYTHON_WORDS.get(kind.lower(), kind.lower()) for kind in found}


def _first_items(value: JSON) -> list[JSON]:
    """Return the first MAX_NODES items of a list; empty for anything else."""
    return value[:MAX_NODES] if isinstance(value, list) else []


def _resolve(reference: str, root: Mapping[str, JSON]) -> JSON:
    """Return the target of a `#/...` reference; None if it has none."""
    found: JSON = root
    for part in reference.removeprefix("#").split("/")[1:] if reference.startswith("#") else ["?"]:
        found = found.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(found, dict) else None
    return found


def is_string_type(allowed: set[str]) -> bool:
    """Return whether a value of these types is always a string, and may be passed on as it comes."""
    return allowed <= {"string"}


def coerce(text: str, allowed: set[str]) -> str:
    """Return the JSON text of a value that was written as `text`."""
    bare = text.strip()
    for kind, read in _READERS.items():
        if kind in allowed:
            found = read(bare)
            if found is not None:
                return found
    return json_codec.quote(text)


def _null(text: str) -> str | None:
    return "null" if text.lower() in ("null", "none") else None


def _integer(text: str) -> str | None:
    if _INTEGER.match(text):
        return str(int(text))
    found = _number(text)
    return found if found is not None and "." not in found and "e" not in found else None


def _number(text: str) -> str | None:
    if _INTEGER.match(text):
        return str(int(text))
    if not _NUMBER.match(text):
        return None
    value = float(text)
    if not math.isfinite(value):
        return None
    return str(int(value)) if value.is_integer() and abs(value) < 2**63 else repr(value)


def _boolean(text: str) -> str | None:
    return _BOOLEANS.get(text)


def _object(text: str) -> str | None:
    return _structure(text, dict, "{")


def _array(text: str) -> str | None:
    return _structure(text, list | tuple, "[(")


def _structure(text: str, kind: JSON, openers: str) -> str | None:
    if text[:1] not in openers or not text:
        return None
    try:
        value = json_codec.loads_lenient(text)
    except ValueError:
        return _literal(text, kind)
    if not isinstance(value, kind):
        return None
    escaper = ControlCharEscaper()
    return escaper.feed(text) + escaper.close()


def _literal(text: str, kind: JSON) -> str | None:
    """Return the JSON text of a Python literal such as `{'k': True}`."""
    if len(text) > MAX_LITERAL:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value = ast.literal_eval(text)
        return json_codec.dumps(value).decode() if isinstance(value, kind) else None
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return None


_READERS = {
    "null": _null, "integer": _integer, "number": _number, "boolean": _boolean, "object": _object,
    "array": _array,
}  # fmt: skip
