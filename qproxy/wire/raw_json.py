"""What a client wrote, so that what nobody changes is not written again.

A prompt is most of a request, and nearly all of it goes on as it came.  `read` parses a body once and remembers where
the text of each of its fields is; `dumps` writes an object, and takes that text for every value that is still the very
object that was read.  So a long conversation costs no second encoding and no copy of its own, and reaches Qwen's
prefix cache byte for byte as the client keeps it.

Values are known by identity: whoever changes one makes a new one (`events`), and a new one is written anew.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import TypeAlias

from qproxy.wire import json_codec
from qproxy.wire.events import JSON

MIN_RAW_BYTES = 256
"""Characters; a shorter value is as soon written as looked up."""
_BLANKS = frozenset(" \t\r\n")
_BLANK = re.compile(r"[ \t\r\n]*")


Span: TypeAlias = tuple[JSON, int, int]
"""A value, and where its text begins and ends."""


class RawFields:
    """Some values, and where their text is in what a client sent."""

    def __init__(self, data: bytes, places: Iterable[Span]) -> None:
        self._data = memoryview(data)
        self._known = {id(place[0]): place for place in places}
        """The values are kept with them, so that no other one takes an identity."""

    def __repr__(self) -> str:
        return f"<Verbatim of {len(self._known)} values>"

    @property
    def size(self) -> int:
        """Bytes of all that the client sent."""
        return len(self._data)

    def text(self, value: JSON) -> memoryview | None:
        """How a value was written, if it is one of those."""
        place = self._known.get(id(value))
        return None if place is None else self._data[place[1] : place[2]]


class RawBody(dict[str, JSON]):
    """A JSON object that knows how its fields were written."""

    raw_fields: RawFields


def parse_body(data: bytes) -> JSON:
    """A body; ValueError when it is not JSON.  An object is a `RawBody`."""
    data = data.removeprefix(codecs.BOM_UTF8)
    text = data.decode()
    return _object(text, data) or json_codec.loads_strict(text)


def _object(text: str, data: bytes) -> RawBody | None:
    """The object that is all of `text`; None for anything else, faults included."""
    body, position = RawBody(), _skip(text, 0)
    places: list[Span] = []
    if text[position : position + 1] != "{":
        return None
    position += 1
    reader = json_codec.strict_reader(text)
    try:
        while True:
            name, position = json_codec.loads_strict_at(text, _skip(text, position), reader)
            position = _skip(text, position)
            if not isinstance(name, str) or text[position : position + 1] != ":":
                return None
            start = _skip(text, position + 1)
            body[name], position = json_codec.loads_strict_at(text, start, reader)
            if position - start >= MIN_RAW_BYTES and isinstance(body[name], list | dict | str):
                places.append((body[name], start, position))
            position = _skip(text, position) + 1
            if text[position - 1 : position] != ",":
                break
    except ValueError:
        return None
    if text[position - 1 : position] != "}" or _skip(text, position) != len(text):
        return None
    body.raw_fields = RawFields(data, places if text.isascii() else _byte_span(places, text, len(data)))
    return body


def _byte_span(places: Sequence[Span], text: str, size: int) -> Iterator[Span]:
    """Where the text of values is in the `size` bytes of all of it.

    The longest stretch of text, within a value or between two, is not encoded: its size is what the others leave.
    """
    marks = [0, *(mark for _, start, end in places for mark in (start, end)), len(text)]
    lengths = [end - start for start, end in pairwise(marks)]
    longest = lengths.index(max(lengths))
    sizes = [
        0 if number == longest else len(text[start:end].encode())
        for number, (start, end) in enumerate(pairwise(marks))
    ]
    sizes[longest] = size - sum(sizes)
    found = accumulate(sizes)
    for value, _, _ in places:
        yield value, next(found), next(found)


def _skip(text: str, position: int) -> int:
    """Where the next character is that is no blank; nearly always there are none, or few."""
    if text[position : position + 1] not in _BLANKS:
        return position
    match = _BLANK.match(text, position)
    assert match is not None
    return match.end()


def dumps(fields: Mapping[str, JSON], texts: RawFields | None) -> bytes:
    """Compact UTF-8 JSON of an object, but for the values that go on as they were written: those come last."""
    if texts is None:
        return json_codec.dumps(fields)
    written = {name: text for name, value in fields.items() if (text := texts.text(value)) is not None}
    if not written:
        return json_codec.dumps(fields)
    others = {name: value for name, value in fields.items() if name not in written}
    pieces: list[bytes | memoryview] = [json_codec.dumps(others)[:-1]]
    for name, text in written.items():
        pieces += b"," if others or len(pieces) > 1 else b"", json_codec.dumps(name), b":", text
    return b"".join([*pieces, b"}"])  # of all that is large, the one copy
