"""The words of an upstream's error, whatever shape its body has.

Servers and gateways nest errors in each other, list them, name their text differently, and pass on JSON or
events as text. Everything is bounded: depth, number and length.
"""

from __future__ import annotations

from qproxy.wire import json_codec
from qproxy.wire.events import JSON

MAX_READ = 8000
"""Maximum characters of a field that are inspected."""
_MESSAGE_FIELDS = (
    "message", "msg", "error_msg", "error_message", "errorMessage", "error_description", "detail", "error",
    "errors", "details", "title", "reason",
)  # fmt: skip
_EVENT_FIELDS = ("data:", "event:", "id:", ":HTTP_STATUS/")
"""Beginnings of an event that a gateway passed on as text."""
MAX_NESTING = 6
MAX_LISTED = 5
MAX_BODY_TEXT = 500


def find_message(value: JSON, depth: int = MAX_NESTING) -> str:
    """Return the message of an error of any known shape: nested, listed, or JSON or SSE within a text; "" for
    none."""
    if isinstance(value, str):
        text = value[:MAX_READ].strip()
        inner = parse_inner(text) if depth else None
        return text if inner is None else find_message(inner, depth - 1) or text
    if not depth:
        return ""
    if isinstance(value, list):
        return "; ".join(filter(None, (_listed_message(entry, depth - 1) for entry in value[:MAX_LISTED])))
    if isinstance(value, dict):
        found = (find_message(value.get(name), depth - 1) for name in _MESSAGE_FIELDS)
        return next(filter(None, found), "")
    return ""


def parse_inner(text: str) -> JSON:
    """Return the JSON that a text is, by itself or as the data of an event; None for any other text."""
    if text.startswith(_EVENT_FIELDS):
        text = text.partition("data:")[2].strip()
    if not text.startswith(("{", "[")):
        return None
    try:
        return json_codec.loads(text)
    except ValueError:
        return None


def xml_message(text: str) -> str:
    """Return the message of an error in XML, as object storage sends it; "" for any other text."""
    if not text.startswith(("<?xml", "<Error")):
        return ""
    code, message = (
        text.partition(f"<{name}>")[2].partition(f"</{name}>")[0] for name in ("Code", "Message")
    )
    return f"{code} {message}".strip() if message and "<" not in message else ""


def _listed_message(entry: JSON, depth: int) -> str:
    """Return the message of an entry, after its path in FastAPI's shape (`loc`, `msg`)."""
    message = find_message(entry, depth)
    path = entry.get("loc") if isinstance(entry, dict) else None
    if message and path and isinstance(path, list):
        return f"{'.'.join(as_text(step)[:64] for step in path[:8])}: {message}"
    return message


def body_text(data: JSON) -> str:
    """Return a body without a known message, shortened; "" if it is empty."""
    is_empty = not any(data.values()) if isinstance(data, dict) else not data
    return "" if is_empty else as_text(data)[:MAX_BODY_TEXT]


def as_text(value: JSON) -> str:
    """Return a field's text, truncated before any pattern inspects it."""
    if isinstance(value, dict | list):
        try:
            value = json_codec.dumps(value).decode()
        except RecursionError:
            return ""
    return str(value)[:MAX_READ]
