"""An h11 connection that parses nothing before its size is known to be within bounds.

h11 bounds what is incomplete, and only its bytes: a head that comes in one read is parsed however long it is, and its
patterns for a field and for a chunk's size are quadratic in a run of blanks.  So a head, the line of a chunk's size and
the trailers are held back here until they are whole, checked (`wire.heads.check`), and then given to h11 one by one.

RFC 9112 2 and 7.1; what is too large is a 431 (RFC 6585 5).
"""

from __future__ import annotations

import re
from typing import Any

import h11

from qproxy.wire import http1

MAX_CHUNK_LINE = 1024
"""Bytes of a chunk's size with its extensions."""
_BLANK_LINE = re.compile(rb"\n\r?+\n")  # where h11 ends a head
_SIZE = re.compile(rb"[0-9A-Fa-f]{1,20}+")
_HEADS = (h11.IDLE, h11.SEND_RESPONSE)
_ENDED = (h11.MUST_CLOSE, h11.CLOSED)
"""In the remaining states what comes waits: it is the next message's, or no HTTP."""


class BoundedConnection(h11.Connection):
    """An h11 connection with bounds on heads, on the lines of chunks' sizes and on trailers."""

    def __init__(self, role: Any, max_head: int) -> None:
        super().__init__(role, max_incomplete_event_size=max_head)
        self._max_head = max_head
        self._held = bytearray()
        self._searched = 0
        """How far there is no blank line in what is held."""
        self._at_end = False
        self._chunks: _Chunks | None = None

    @property
    def trailing_data(self) -> tuple[bytes, bool]:
        return super().trailing_data[0] + bytes(self._held), self._at_end

    def receive_data(self, data: bytes | bytearray) -> None:
        if data:
            self._held += data
        else:
            self._at_end = True

    def next_event(self) -> Any:
        while (event := super().next_event()) is h11.NEED_DATA:
            piece = self._next_piece()
            if piece is None:
                return event
            super().receive_data(piece)
        if isinstance(event, h11.Request | h11.Response):
            chunked = any(name == b"transfer-encoding" for name, _ in event.headers)
            self._chunks = _Chunks() if chunked else None
        return event

    def _next_piece(self) -> bytes | None:
        """What h11 may parse next, None while there is nothing; b"" for the end."""
        try:
            size = self._measure()
        except http1.TooLarge as error:
            self._process_error(self.their_role)  # as h11 does where it refuses
            raise h11.RemoteProtocolError(str(error), error_status_hint=431) from None
        if not size and (not self._at_end or self._waits()):
            return None
        size = size or len(
            self._held
        )  # a message that breaks off: h11 finds no whole line in it, and says so
        piece = bytes(self._held[:size])
        del self._held[:size]
        self._searched = 0
        return piece

    def _measure(self) -> int:
        """How many of the held bytes h11 may parse next."""
        state = self.their_state
        if not self._held or self._waits():
            return 0
        if state in _HEADS:
            return 1 if self._held[0] <= 0x20 else self._section()  # such a byte h11 refuses by itself
        if state is h11.SEND_BODY and self._chunks is not None:
            return self._trailers() if self._chunks.in_trailers else self._chunks.measure(self._held)
        return len(self._held)

    def _waits(self) -> bool:
        """Whether bytes are held for what comes after this message."""
        return bool(self._held) and self.their_state not in (*_HEADS, h11.SEND_BODY, *_ENDED)

    def _section(self) -> int:
        """The length of the head or the trailers, 0 while the blank line behind them is to come."""
        blank = _BLANK_LINE.search(self._held, self._searched)
        end = blank.end() if blank else len(self._held)
        self._searched = max(0, end - 2)
        if blank or end > self._max_head:
            http1.check(self._held[:end], self._max_head)
        return end if blank else 0

    def _trailers(self) -> int:
        for empty in (b"\n", b"\r\n"):
            if self._held.startswith(empty):
                return len(empty)
        return self._section()


class _Chunks:
    """Where the next chunk ends in what is held."""

    def __init__(self) -> None:
        self._left = 0
        """Bytes to come of the chunk that has begun, the line end behind it included."""
        self.in_trailers = False

    def measure(self, held: bytearray) -> int:
        """How many bytes of `held` may be parsed: a whole size, and what is there of its chunk."""
        line = 0
        if not self._left:
            line = held.find(b"\r\n", 0, MAX_CHUNK_LINE) + 2
            if line < 2:
                if len(held) >= MAX_CHUNK_LINE:
                    raise http1.TooLarge(f"A chunk's size has more than {MAX_CHUNK_LINE} bytes.")
                return 0
            size = _SIZE.match(held)
            if size is None:
                return line  # h11 says what is wrong with it
            self.in_trailers = not int(size[0], 16)
            self._left = 0 if self.in_trailers else int(size[0], 16) + 2
        some = min(self._left, len(held) - line)
        self._left -= some
        return line + some
