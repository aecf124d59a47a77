"""Server-sent events, both ways: bytes to events, incrementally, and events to bytes.

WHATWG HTML 9.2: one byte-order mark is dropped; lines end with CRLF, LF or CR and nothing else (U+2028 is
text); a line starting with a colon is a comment; one space after the colon of a field is dropped; several
`data` lines join with LF; unknown fields are ignored. `id` and `retry` mean nothing to a proxy.

Leniencies, each for a server that exists:
  * the last event needs no blank line if its data is complete (JSON or `[DONE]`);
  * two `data` lines that are each complete JSON are two events (a gateway omits the blank line);
  * `data: data: {...}` is read as `data: {...}`;
  * a body with no `data` line at all that is JSON becomes one event named "bare": a plain error in a 200;
    so does a line that is a JSON object, between events, and any number of lines at the end;
  * DashScope's comment `:HTTP_STATUS/429` sets the event's `status`.

Any cut of the bytes gives the same events. A read is split into lines once; an incomplete line waits as
pieces, so a line of many megabytes costs no more than its length.
"""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass

from qproxy.wire import json_codec
from qproxy.wire.errors import UpstreamError

MAX_EVENT = 32 * 1024 * 1024
"""Maximum characters of one unfinished event: a whole file may arrive in one argument."""
MAX_BARE_TEXT = 1024 * 1024
LINE = 8
"""Characters charged for a line of data even if it is empty."""

_LINE_END = re.compile("\r\n|\n|\r")
_STATUS = re.compile(r":HTTP_STATUS/([0-9]{3})$")
_EVENT_START = re.compile(rb"\s*(data|event|id|retry)?:")


@dataclass(slots=True)
class ServerSentEvent:
    """One event: its data, its name, and the HTTP status from DashScope's comment."""

    data: str
    event: str = "message"
    status: int | None = None


class Decoder:
    """A stage from bytes to events."""

    def __init__(self) -> None:
        self._text = codecs.getincrementaldecoder("utf-8-sig")("replace")
        self._pieces: list[str] = []
        self._held = 0
        self._skip_lf = False
        self._data: list[str] = []
        self._size = 0
        """Characters in `_data`, plus LINE for each line."""
        self._name = ""
        self._status: int | None = None
        self._bare_text: list[str] = []
        self._bare_size = 0
        self._fields_seen = False

    @property
    def held(self) -> int:
        """Return the number of characters of the incomplete event."""
        return self._held + self._size

    def feed(self, item: bytes) -> list[ServerSentEvent]:
        """Return the events that `item` completes; raise UpstreamError if one exceeds MAX_EVENT."""
        return self._lines(self._text.decode(item))

    def close(self) -> list[ServerSentEvent]:
        """Return an unfinished event whose data is complete, or a bare JSON body, at the end of the
        stream."""
        events = self._lines(self._text.decode(b"", True))
        if self._pieces:
            self._line("".join(self._pieces), events)
            self._pieces = []
        if self._data and _is_whole("\n".join(self._data)):
            self._dispatch(events)
        if self._bare_text:
            body = "\n".join(self._bare_text)
            if _is_whole(body):
                events.append(ServerSentEvent(body, "bare", self._status))
        return events

    def _lines(self, text: str) -> list[ServerSentEvent]:
        events: list[ServerSentEvent] = []
        if not text:
            return events
        if self._skip_lf:  # the CR that ended the last read may be the first half of a CRLF
            self._skip_lf = False
            if text[0] == "\n":
                text = text[1:]
        lines = text.split("\n") if "\r" not in text else _LINE_END.split(text)
        self._skip_lf = text.endswith("\r")
        if len(lines) > 1 and self._pieces:
            lines[0] = "".join([*self._pieces, lines[0]])
            self._pieces, self._held = [], 0
        last = lines.pop()
        for line in lines:
            self._line(line, events)
        if last:
            self._pieces.append(last)
            self._held += len(last)
        if self._held + self._size > MAX_EVENT:
            raise UpstreamError(
                "The upstream sent an event of more than 32 MiB.", code="upstream_invalid_response"
            )
        return events

    def _line(self, line: str, events: list[ServerSentEvent]) -> None:
        if line.startswith("data:"):
            value = line[5:].removeprefix(" ")
            if value.startswith("data:"):
                value = value[5:].removeprefix(" ")
            self._add(value, events)
        elif not line:
            self._dispatch(events)
        elif line[0] == ":":
            status = _STATUS.match(line)
            if status is not None:
                self._status = int(status[1])
        elif line[0] == "{" and self._fields_seen and _is_whole(line):
            events.append(ServerSentEvent(line, "bare", self._status))
        else:
            self._field(line)

    def _field(self, line: str) -> None:
        name, _, value = line.partition(":")
        if name == "event":
            self._name = value.removeprefix(" ")
            self._fields_seen = True
        elif name == "data":
            self._data.append("")
            self._size += LINE
            self._fields_seen = True
        elif name in ("id", "retry"):
            self._fields_seen = True
        elif name == "error" and value:  # llama.cpp, instead of an event named error
            self._name, self._fields_seen = "error", True
            self._data.append(value.removeprefix(" "))
            self._size += len(value) + LINE
        elif self._bare_size < MAX_BARE_TEXT and (
            not self._fields_seen or self._bare_text or line.startswith("{")
        ):
            self._bare_text.append(line)
            self._bare_size += len(line)

    def _add(self, value: str, events: list[ServerSentEvent]) -> None:
        self._fields_seen = True
        if self._bare_text:  # it was no body of its own
            self._bare_text = []
        if len(self._data) == 1 and _is_whole(value) and _is_whole(self._data[0]):
            self._dispatch(events, keep_name=True)
        self._data.append(value)
        self._size += len(value) + LINE

    def _dispatch(self, events: list[ServerSentEvent], *, keep_name: bool = False) -> None:
        if self._data:
            data = self._data[0] if len(self._data) == 1 else "\n".join(self._data)
            if data:
                events.append(ServerSentEvent(data, self._name or "message", self._status))
            self._data, self._size = [], 0
        if not keep_name:
            self._name, self._status = "", None


def _is_whole(data: str) -> bool:
    """Return whether data is complete by itself: `[DONE]` or a JSON object or array."""
    stripped = data.strip()
    if stripped == "[DONE]":
        return True
    if not stripped or stripped[0] not in "{[":
        return False
    try:
        json_codec.loads(stripped)
    except ValueError:
        return False
    return True


def looks_like_events(body: bytes) -> bool:
    """Return whether a body of another content type begins like an event stream."""
    return _EVENT_START.match(body.removeprefix(b"\xef\xbb\xbf")) is not None


def encode(data: bytes, event: str | None = None) -> bytes:
    """Return one event with one line of data (JSON has no line ends of its own)."""
    if event is None:
        return b"data: %b\n\n" % data
    return b"event: %b\ndata: %b\n\n" % (event.encode(), data)


def comment(text: str) -> bytes:
    """Return a comment, which keeps a silent connection open and is ignored by clients."""
    return b": %b\n\n" % text.encode()
