"""Lists of models, embeddings and errors: bodies that come whole and have one shape."""

from __future__ import annotations

import base64
import binascii
import math
from typing import Any

from qproxy.wire.conformance.rules import Violation
from qproxy.wire.events import JSON

ERROR_KEYS = {"message": (str,), "type": (str,), "param": (str, type(None)), "code": (str, type(None))}


def check_models(body: JSON) -> tuple[list[str], list[Violation]]:
    """Return the names in a list of models, and its violations."""
    data = body.get("data") if isinstance(body, dict) else None
    if not isinstance(data, list):
        return [], [Violation("models", "`data` is not a list")]
    found = []
    if body.get("object") != "list":
        found.append(Violation("models", f"object is {body.get('object')!r:.40} instead of 'list'"))
    names = [item.get("id") for item in data if isinstance(item, dict)]
    if len(names) != len(data) or not all(isinstance(name, str) for name in names):
        found.append(Violation("models", "an entry has no id"))
    return [name for name in names if isinstance(name, str)], found


def check_error(status: int, body: JSON) -> list[Violation]:
    """Return the violations of the response to an invalid request."""
    if status < 400:
        return [Violation("error", f"an invalid request is answered with status {status}")]
    found = []
    if status >= 500:
        found.append(Violation("error", f"an invalid request is answered with status {status}"))
    error = body.get("error") if isinstance(body, dict) else None
    if not isinstance(error, dict):
        return [*found, Violation("error", "`error` is not an object")]
    for key, kinds in ERROR_KEYS.items():
        if key not in error:
            found.append(Violation("error", f"error.{key} is absent"))
        elif not isinstance(error[key], kinds):
            found.append(Violation("error", f"error.{key} is {error[key]!r:.40}"))
    return found


def check_embeddings(body: JSON, count: int, *, as_base64: bool) -> list[Violation]:
    """Return the violations of the response to a request for the vectors of `count` texts."""
    data = body.get("data") if isinstance(body, dict) else None
    if not isinstance(data, list) or not all(isinstance(item, dict) for item in data):
        return [Violation("vectors", "`data` is not a list")]
    found = []
    if [item.get("index") for item in data] != list(range(count)):
        found.append(Violation("vectors", f"the indices are not 0 to {count - 1}, in order"))
    wanted = "base64" if as_base64 else "a list of numbers"
    right = _is_base64 if as_base64 else _is_numbers
    if not all(right(item.get("embedding")) for item in data):
        found.append(Violation("vectors", f"a vector is not {wanted}, which was requested"))
    usage = body.get("usage")
    if not isinstance(usage, dict) or not isinstance(usage.get("prompt_tokens"), int):
        found.append(Violation("usage", "usage.prompt_tokens is absent"))
    return found


def _is_base64(value: Any) -> bool:
    try:
        size = len(base64.b64decode(value, validate=True)) if isinstance(value, str) else 0
    except binascii.Error:
        return False
    return size > 0 and size % 4 == 0


def _is_numbers(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(number, int | float) and math.isfinite(number) for number in value)
    )
