"""Secrets that a stream has cut into pieces: `"sk-abc"`, `"def"`.  Pure.

A model's text comes in deltas, and no pattern finds a secret of which each delta has a part.  So the texts of a stream's
events are read together, those of one field after each other.  Where the whole of a field holds a secret, its first
event gets the whole without it, and the others of the field nothing; what holds none stays as it was sent.
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
"""What says to which of several texts an event belongs."""


@dataclass(eq=False, slots=True)
class _StreamEvent:
    """One event, and whether it has been changed."""

    line: int
    value: Any
    changed: bool = False


@dataclass(eq=False, slots=True)
class _FieldText:
    """One field's pieces: the event, the object, the name in it."""

    fragments: list[tuple[_StreamEvent, Any, Any]] = field(default_factory=list)

    def joined(self) -> str:
        return "".join(holder[name] for _, holder, name in self.fragments)

    def replace(self, text: str) -> None:
        """Have the first piece say all of it."""
        for event, holder, name in self.fragments:
            event.changed = event.changed or holder[name] != text
            holder[name], text = text, ""


def redact_stream(stream: bytes, redact: Callable[[str], str]) -> bytes:
    """A stream of server-sent events without the secrets that several of them hold together."""
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
    """The object in an event's data; None where there is none, or it was cut off."""
    if not line.startswith(PREFIX):
        return None
    try:
        value = json_codec.loads(line.removeprefix(PREFIX))
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _identifying_values(value: Any) -> FieldPath:
    """What tells the entries of a list apart, or the events of one kind."""
    return tuple(value[name] for name in IDENTIFYING_KEYS if isinstance(value.get(name), str | int))


def _iter_strings(value: Any, place: FieldPath, depth: int = 0) -> Iterator[tuple[FieldPath, Any, Any]]:
    """Every string of a value, by its place: the object or list that has it, and under which name."""
    if depth > MAX_DEPTH:
        return
    entries = value.items() if isinstance(value, dict) else enumerate(value)
    for name, entry in entries:
        if isinstance(entry, str):
            yield (*place, name), value, name
        elif isinstance(entry, dict | list):
            marks = _identifying_values(entry) if isinstance(entry, dict) else ()
            yield from _iter_strings(entry, (*place, marks or name), depth + 1)
