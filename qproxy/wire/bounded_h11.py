"""An h11 connection that parses nothing before its size is known to be bounded.

h11 bounds only the bytes of incomplete data: a header section that comes in one read is parsed however long
it is, and its patterns for a header and for a chunk size are quadratic in a run of blanks. So a header
section, a chunk size line and the trailers are held until they are complete, checked (`http1.check_head`),
and then given to h11.

RFC 9112 2 and 7.1; a header section that is too large is a 431 (RFC 6585 5).
"""

from __future__ import annotations

import re
from typing import Any

import h11

from qproxy.wire import http1

MAX_CHUNK_LINE = 1024
"""Maximum bytes of a chunk size line with its extensions."""
_BLANK_LINE = re.compile(rb"\n\r?+\n")  # where h11 ends a header section
_SIZE = re.compile(rb"[0-9A-Fa-f]{1,20}+")
_HEAD_STATES = (h11.IDLE, h11.SEND_RESPONSE)
_CLOSED_STATES = (h11.MUST_CLOSE, h11.CLOSED)
"""In the remaining states data waits: it belongs to the next message, or is not HTTP."""


class BoundedConnection(h11.Connection):
    """An h11 connection with bounds on header sections, chunk size lines and trailers."""

    def __init__(self, role: Any, max_head: int) -> None:
        super().__init__(role, max_incomplete_event_size=max_head)
        self._max_head = max_head
        self._buffer = bytearray()
        self._scanned = 0
        """Offset up to which the buffer has no blank line."""
        self._at_eof = False
        self._chunks: _ChunkScanner | None = None

    @property
    def trailing_data(self) -> tuple[bytes, bool]:
        return super().trailing_data[0] + bytes(self._buffer), self._at_eof

    def receive_data(self, data: bytes | bytearray) -> None:
        if data:
            self._buffer += data
        else:
            self._at_eof = True

    def next_event(self) -> Any:
        while (event := super().next_event()) is h11.NEED_DATA:
            piece = self._next_chunk()
            if piece is None:
                return event
            super().receive_data(piece)
        if isinstance(event, h11.Request | h11.Response):
            chunked = any(name == b"transfer-encoding" for name, _ in event.headers)
            self._chunks = _ChunkScanner() if chunked else None
        return event

    def _next_chunk(self) -> bytes | None:
        """Return what h11 may parse next, None while there is nothing; b"" at the end."""
        try:
            size = self._parsable_size()
        except http1.HeadTooLarge as error:
            self._process_error(self.their_role)  # as h11 does where it rejects
            raise h11.RemoteProtocolError(str(error), error_status_hint=431) from None
        if not size and (not self._at_eof or self._is_next_message()):
            return None
        size = size or len(self._buffer)  # a truncated message: h11 finds no whole line in it and raises
        piece = bytes(self._buffer[:size])
        del self._buffer[:size]
        self._scanned = 0
        return piece

    def _parsable_size(self) -> int:
        """Return how many of the buffered bytes h11 may parse next."""
        state = self.their_state
        if not self._buffer or self._is_next_message():
            return 0
        if state in _HEAD_STATES:
            return (
                1 if self._buffer[0] <= 0x20 else self._header_section_size()
            )  # h11 rejects such a byte itself
        if state is h11.SEND_BODY and self._chunks is not None:
            return (
                self._trailers_size()
                if self._chunks.in_trailers
                else self._chunks.parsable_size(self._buffer)
            )
        return len(self._buffer)

    def _is_next_message(self) -> bool:
        """Return whether the buffer holds bytes of the next message."""
        return bool(self._buffer) and self.their_state not in (*_HEAD_STATES, h11.SEND_BODY, *_CLOSED_STATES)

    def _header_section_size(self) -> int:
        """Return the length of the header section or trailers, 0 until the blank line after them has come."""
        blank = _BLANK_LINE.search(self._buffer, self._scanned)
        end = blank.end() if blank else len(self._buffer)
        self._scanned = max(0, end - 2)
        if blank or end > self._max_head:
            http1.check_head(self._buffer[:end], self._max_head)
        return end if blank else 0

    def _trailers_size(self) -> int:
        for empty in (b"\n", b"\r\n"):
            if self._buffer.startswith(empty):
                return len(empty)
        return self._header_section_size()


class _ChunkScanner:
    """A scanner for the end of the next chunk."""

    def __init__(self) -> None:
        self._remaining = 0
        """Bytes of the current chunk still to come, including the line end after it."""
        self.in_trailers = False

    def parsable_size(self, held: bytearray) -> int:
        """Return how many bytes of `held` may be parsed: a whole size, and what has come of its chunk."""
        line = 0
        if not self._remaining:
            line = held.find(b"\r\n", 0, MAX_CHUNK_LINE) + 2
            if line < 2:
                if len(held) >= MAX_CHUNK_LINE:
                    raise http1.HeadTooLarge(f"A chunk's size has more than {MAX_CHUNK_LINE} bytes.")
                return 0
            size = _SIZE.match(held)
            if size is None:
                return line  # h11 raises the error
            self.in_trailers = not int(size[0], 16)
            self._remaining = 0 if self.in_trailers else int(size[0], 16) + 2
        some = min(self._remaining, len(held) - line)
        self._remaining -= some
        return line + some
