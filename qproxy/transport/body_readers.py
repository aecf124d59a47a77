"""Readers of a response's body from the bytes of its connection.

`ContentLengthReader` and `ChunkedReader` (RFC 9112 6.2 and 7.1) do not use h11: a streamed response is
thousands of small chunks, and h11 creates several objects for each. `H11Reader` follows a head that h11
parsed.

All are fed the bytes of the connection, b"" at its end, and drained of body. An error after good bytes is
raised only when those have been taken: `raise_error`.
"""

from __future__ import annotations

import re
from typing import Protocol

import h11

_SIZE = re.compile(rb"([0-9A-Fa-f]{1,16}+)[ \t]{0,256}+(?:;[^\r\n]{0,4096}+)?+\r\n")
_DIGITS = [bytes([digit]) for digit in b"0123456789abcdefABCDEF"] + [b""]
MAX_LINE = 4096
"""Maximum bytes after a chunk's size, and of one trailer field."""
MAX_TRAILERS = 64 * 1024
"""Maximum bytes of all trailers."""


class IncompleteBody(Exception):
    """The peer closed the connection in the middle of the body."""


class BodyReader(Protocol):
    """A reader of a response's body."""

    finished: bool
    """Return whether the whole body was received."""

    @property
    def reusable(self) -> bool:
        """Return whether no bytes follow the body."""
        ...

    def feed(self, data: bytes) -> None: ...

    def take_buffered(self) -> bytes: ...

    def raise_error(self) -> None:
        """Raise the pending error: `IncompleteBody` or an h11 error."""
        ...


def body_reader_for(http: h11.Connection, head: h11.Response) -> BodyReader:
    """Return the reader of the body after a response's head; `http` may hold its beginning."""
    for name, value in head.headers:
        if name == b"transfer-encoding" and http.their_state is h11.SEND_BODY:
            return ChunkedReader(http.trailing_data[0]) if value.lower() == b"chunked" else H11Reader(http)
    return H11Reader(http)


class _BufferedReader:
    """The shared part of the readers: buffered data, and an error after it."""

    def __init__(self) -> None:
        self.finished = False
        self._pieces: list[bytes] = []
        self._error: Exception | None = None

    def take_buffered(self) -> bytes:
        pieces, self._pieces = self._pieces, []
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def raise_error(self) -> None:
        if self._error is not None:
            raise self._error


class ContentLengthReader(_BufferedReader):
    """A reader of a body of a known length."""

    def __init__(self, length: int, data: bytes = b"") -> None:
        super().__init__()
        self._remaining = length
        self.reusable = True
        self.finished = not length
        if data:
            self.feed(data)

    def feed(self, data: bytes) -> None:
        if not data and self._remaining:
            self._error = IncompleteBody()
        elif data:
            piece = data[: self._remaining]
            self._pieces.append(piece)
            self._remaining -= len(piece)
            self.finished = not self._remaining
            self.reusable = self.reusable and len(piece) == len(data)


class H11Reader(_BufferedReader):
    """A reader of a body that h11 parses."""

    def __init__(self, http: h11.Connection) -> None:
        super().__init__()
        self._connection = http
        self._read(at_end=False)

    @property
    def reusable(self) -> bool:
        return self._connection.their_state is h11.DONE and not self._connection.trailing_data[0]

    def feed(self, data: bytes) -> None:
        self._connection.receive_data(data)
        self._read(at_end=not data)

    def _read(self, *, at_end: bool) -> None:
        try:
            while isinstance(event := self._connection.next_event(), h11.Data):
                self._pieces.append(bytes(event.data))
        except h11.RemoteProtocolError as error:
            self._error = IncompleteBody() if at_end else error
        else:
            self.finished = event is not h11.NEED_DATA


class ChunkedReader(_BufferedReader):
    """A reader of a chunked body."""

    def __init__(self, data: bytes = b"") -> None:
        super().__init__()
        self._rest = b""
        """Bytes of an incomplete size, end of a chunk, or trailer."""
        self._remaining = 0
        """Remaining bytes of the chunk."""
        self._ends_chunk = False
        self._in_trailers = False
        self._trailers = 0
        """Received bytes of trailers."""
        self.reusable = True
        if data:
            self.feed(data)

    def feed(self, data: bytes) -> None:
        if not data:
            self._error = self._error or IncompleteBody()
        elif self._error is None:
            try:
                self._read(self._rest + data if self._rest else data)
            except h11.RemoteProtocolError as error:
                self._error = error

    def _read(self, data: bytes) -> None:
        position, before = 0, -1
        while before < position < len(data) and not self.finished:
            before = position
            if self._remaining:
                position += self._some(data[position : position + self._remaining])
            elif self._ends_chunk:
                position += self._end(data[position : position + 2])
            elif self._in_trailers:
                position = self._trailer(data, position)
            else:
                position = self._size(data, self._whole_chunks(data, position))
        self._rest = data[position:]
        self.reusable = not self._rest

    def _whole_chunks(self, data: bytes, position: int) -> int:
        """Return the end of the chunks that are complete from size to end, as nearly all are."""
        while (size := _SIZE.match(data, position)) is not None:
            begin = size.end()
            end = begin + int(size[1], 16)
            if begin == end or data[end : end + 2] != b"\r\n":
                break
            self._pieces.append(data[begin:end])
            position = end + 2
        return position

    def _size(self, data: bytes, position: int) -> int:
        size = _SIZE.match(data, position)
        if size is not None:
            self._remaining = int(size[1], 16)
            self._ends_chunk = self._remaining > 0
            self._in_trailers = self._remaining == 0
            return size.end()
        if data.find(b"\n", position) >= 0 or data[position : position + 1] not in _DIGITS:
            raise h11.RemoteProtocolError("a chunk without a size")
        if len(data) - position > MAX_LINE:
            raise h11.RemoteProtocolError("a chunk whose size has no end")
        return position

    def _some(self, piece: bytes) -> int:
        self._pieces.append(piece)
        self._remaining -= len(piece)
        return len(piece)

    def _end(self, mark: bytes) -> int:
        if not b"\r\n".startswith(mark):
            raise h11.RemoteProtocolError("a chunk that is longer than its size")
        self._ends_chunk = len(mark) < 2
        return 0 if self._ends_chunk else 2

    def _trailer(self, data: bytes, position: int) -> int:
        """Return the end of the next trailer field, or `position` if it is incomplete; an empty one ends the
        body."""
        end = data.find(b"\r\n", position)
        size = (len(data) if end < 0 else end) - position
        if size > MAX_LINE:
            raise h11.RemoteProtocolError(f"a trailer of more than {MAX_LINE} bytes")
        self._trailers += size if end >= 0 else 0
        if self._trailers > MAX_TRAILERS:
            raise h11.RemoteProtocolError(f"trailers of more than {MAX_TRAILERS} bytes")
        self.finished = end == position
        return end + 2 if end >= 0 else position
