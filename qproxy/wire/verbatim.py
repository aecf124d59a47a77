"""What a client wrote, so that what nobody changes is not written again.

A prompt is most of a request, and nearly all of it goes on as it came.  `read` parses a body once and remembers the
text of each of its fields; `dumps` writes an object, and takes that text for every value that is still the very
object that was read.  So a long conversation costs no second encoding, and reaches Qwen's prefix cache byte for byte
as the client keeps it.

Values are known by identity: whoever changes one makes a new one (`events`), and a new one is written anew.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from qproxy.wire import jsontext
from qproxy.wire.events import JSON

LEAST = 256
"""Characters; a shorter value is as soon written as looked up."""
_BLANK = re.compile(r"[ \t\r\n]*")


class Body(dict[str, JSON]):
    """A JSON object that knows how its fields were written."""

    def __init__(self) -> None:
        super().__init__()
        self.texts = Verbatim()


class Verbatim:
    """Some values, and their text."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[JSON, str]] = {}

    def __repr__(self) -> str:
        return f"<Verbatim of {len(self._known)} values>"

    def add(self, value: JSON, text: str) -> None:
        """Remember a value's text; the value is kept, so that no other one takes its identity."""
        self._known[id(value)] = value, text

    def text(self, value: JSON) -> str | None:
        """How a value was written, if it is one of those."""
        known = self._known.get(id(value))
        return known[1] if known is not None and known[0] is value else None


def read(data: bytes) -> JSON:
    """A body; ValueError when it is not JSON.  An object is a `Body`."""
    text = data.decode("utf-8-sig")
    return _object(text) or jsontext.loads(text)


def _object(text: str) -> Body | None:
    """The object that is all of `text`; None for anything else, faults included."""
    body, position = Body(), _skip(text, 0)
    if text[position : position + 1] != "{":
        return None
    position += 1
    try:
        while True:
            name, position = jsontext.strictly_at(text, _skip(text, position))
            position = _skip(text, position)
            if not isinstance(name, str) or text[position : position + 1] != ":":
                return None
            start = _skip(text, position + 1)
            body[name], position = jsontext.strictly_at(text, start)
            if position - start >= LEAST and isinstance(body[name], list | dict):
                body.texts.add(body[name], text[start:position])
            position = _skip(text, position) + 1
            if text[position - 1 : position] != ",":
                break
    except ValueError:
        return None
    ended = text[position - 1 : position] == "}" and _skip(text, position) == len(text)
    return body if ended else None


def _skip(text: str, position: int) -> int:
    match = _BLANK.match(text, position)
    assert match is not None
    return match.end()


def dumps(fields: Mapping[str, JSON], texts: Verbatim | None) -> bytes:
    """Compact UTF-8 JSON of an object, but for the values that go on as they were written."""
    written = {} if texts is None else {n: text for n, value in fields.items() if (text := texts.text(value))}
    if not written:
        return jsontext.dumps(fields)
    parts = [
        jsontext.dumps(name) + b":" + (written[name].encode() if name in written else jsontext.dumps(value))
        for name, value in fields.items()
    ]
    return b"{" + b",".join(parts) + b"}"
