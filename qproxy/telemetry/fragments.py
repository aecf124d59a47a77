"""Redaction of secrets that a stream splits into parts: `"sk-abc"`, `"def"`. Pure.

A model's text arrives in deltas, and no pattern matches a secret that is split across them. So the strings of
each field are joined over all events. If the joined text contains a secret, the field's first event gets the
redacted text and the others get empty strings; other fields are unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from qproxy.wire import json_codec

FieldPath: TypeAlias = tuple[Any, ...]
MAX_DEPTH = 20
PREFIX = b"data: "
IDENTIFYING_KEYS = ("type", "item_id", "output_index", "content_index", "index")
"""Keys whose values identify the text that an event belongs to."""


@dataclass(eq=False, slots=True)
class _StreamEvent:
    """An event, and whether it was changed."""

    line: int
    value: Any
    changed: bool = False


@dataclass(eq=False, slots=True)
class _FieldText:
    """The parts of one field: the event, the object, the key in it."""

    fragments: list[tuple[_StreamEvent, Any, Any]] = field(default_factory=list)

    def joined(self) -> str:
        return "".join(holder[name] for _, holder, name in self.fragments)

    def replace(self, text: str) -> None:
        """Put the text into the first part, and empty strings into the others."""
        for event, holder, name in self.fragments:
            event.changed = event.changed or holder[name] != text
            holder[name], text = text, ""


def redact_stream(stream: bytes, redact: Callable[[str], str]) -> bytes:
    """Return a stream of server-sent events with split secrets redacted."""
    lines = stream.split(b"\n")
    events = [
        _StreamEvent(number, value)
        for number, line in enumerate(lines)
        if (value := _parse_event(line)) is not None
    ]
    texts: dict[FieldPath, _FieldText] = {}
    for event in events:
        for place, holder, name in _iter_strings(event.value, _identifying_values(event.value)):
            texts.setdefault(place, _FieldText()).fragments.append((event, holder, name))
    for text in texts.values():
        whole = text.joined() if len(text.fragments) > 1 else ""
        hidden = redact(whole)
        if hidden != whole:
            text.replace(hidden)
    for event in events:
        if event.changed:
            lines[event.line] = PREFIX + json_codec.dumps(event.value)
    return b"\n".join(lines)


def _parse_event(line: bytes) -> Any:
    """Return the JSON value of an event's data; None if there is none or it is truncated."""
    if not line.startswith(PREFIX):
        return None
    try:
        value = json_codec.loads(line.removeprefix(PREFIX))
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _identifying_values(value: Any) -> FieldPath:
    """Return the values that distinguish list entries, or events of one type."""
    return tuple(value[name] for name in IDENTIFYING_KEYS if isinstance(value.get(name), str | int))


def _iter_strings(value: Any, place: FieldPath, depth: int = 0) -> Iterator[tuple[FieldPath, Any, Any]]:
    """Yield every string of a value with its path, its container and its key."""
    if depth > MAX_DEPTH:
        return
    entries = value.items() if isinstance(value, dict) else enumerate(value)
    for name, entry in entries:
        if isinstance(entry, str):
            yield (*place, name), value, name
        elif isinstance(entry, dict | list):
            marks = _identifying_values(entry) if isinstance(entry, dict) else ()
            yield from _iter_strings(entry, (*place, marks or name), depth + 1)
