"""The text of a client's request body, so that unchanged values are not encoded again.

A prompt is most of a request, and nearly all of it is forwarded unchanged. `parse_body` parses a body once
and stores the position of each field's text; `dumps` writes an object, and copies that text for every value
that is still the parsed object. So a long conversation costs no second encoding and no extra copy, and
reaches Qwen's prefix cache byte for byte as the client wrote it.

Values are compared by identity: code that changes one creates a new one (`events`), which is encoded.
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
"""Characters; a shorter value is encoded as fast as it is looked up."""
_BLANKS = frozenset(" \t\r\n")
_BLANK = re.compile(r"[ \t\r\n]*")


Span: TypeAlias = tuple[JSON, int, int]
"""A value, and the start and end of its text."""


class RawFields:
    """Values of a client's body, with the positions of their text."""

    def __init__(self, data: bytes, places: Iterable[Span]) -> None:
        self._data = memoryview(data)
        self._known = {id(place[0]): place for place in places}
        """The values are kept alive with their positions, so that their identities are not reused."""

    def __repr__(self) -> str:
        return f"<Verbatim of {len(self._known)} values>"

    @property
    def size(self) -> int:
        """Return the number of bytes that the client sent."""
        return len(self._data)

    def text(self, value: JSON) -> memoryview | None:
        """Return the text of a value, or None if it is not one of these."""
        place = self._known.get(id(value))
        return None if place is None else self._data[place[1] : place[2]]


class RawBody(dict[str, JSON]):
    """A JSON object with the text of its fields."""

    raw_fields: RawFields


def parse_body(data: bytes) -> JSON:
    """Parse a body; an object becomes a `RawBody`. Raises ValueError if it is not JSON."""
    data = data.removeprefix(codecs.BOM_UTF8)
    text = data.decode()
    return _object(text, data) or json_codec.loads_strict(text)


def _object(text: str, data: bytes) -> RawBody | None:
    """Return the object that is all of `text`; None for anything else, including errors."""
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
    """Yield the positions of values in the `size` bytes of the encoded text.

    The longest stretch, within a value or between two, is not encoded: its size is what the others leave.
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
    """Return the offset of the next character that is not a blank; nearly always there are none, or few."""
    if text[position : position + 1] not in _BLANKS:
        return position
    match = _BLANK.match(text, position)
    assert match is not None
    return match.end()


def dumps(fields: Mapping[str, JSON], texts: RawFields | None) -> bytes:
    """Return compact UTF-8 JSON of an object, with unchanged values copied and moved to the end."""
    if texts is None:
        return json_codec.dumps(fields)
    written = {name: text for name, value in fields.items() if (text := texts.text(value)) is not None}
    if not written:
        return json_codec.dumps(fields)
    others = {name: value for name, value in fields.items() if name not in written}
    pieces: list[bytes | memoryview] = [json_codec.dumps(others)[:-1]]
    for name, text in written.items():
        pieces += b"," if others or len(pieces) > 1 else b"", json_codec.dumps(name), b":", text
    return b"".join([*pieces, b"}"])  # the only copy of the large values
