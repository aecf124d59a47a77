"""Header sections of HTTP/1.1 messages in their most common form.

Parsing a header section is the costliest part of a short exchange, and nearly all of them are alike: a length
or chunks, a connection that stays open. Those are read and written here, with one regular expression each.
Anything longer, older, rarer or wrong (another method or version, line folding, bare line feeds, two lengths,
a coding, an upgrade, `Expect`, `Connection: close` of a request) is not read: the functions return None, and
h11 decides. Nothing is accepted that h11 rejects, and it is read as h11 reads it (`tests/wire/test_http1.py`
compares them).

Every repeat here is possessive: a pattern never tries a byte twice, so its cost is linear. `check_head`
bounds a header section of either side before any pattern, these or h11's, sees it.

RFC 9112 2-6, RFC 9110 5.5 and 5.6.2.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from http import HTTPStatus
from typing import NamedTuple, TypeAlias

HeaderList: TypeAlias = list[tuple[bytes, bytes]]
"""In order; names in lower case."""

MAX_LINES = 2048
"""As many lines as HTTP/2 accepts in 64 KiB, where each header counts 32 bytes more (RFC 9113 6.5.2)."""
MAX_BLANK_RUN = 256
"""Consecutive blanks: h11's pattern for a header is quadratic in a run of blanks."""

_TOKEN = rb"[-!#$%&'*+.^_`|~0-9a-zA-Z]++"
_VALUE = rb"(?:[^\x00\s]++(?:[ \t]++[^\x00\s]++)*+)?+"
_FIELD = re.compile(rb"(?<=\n)(" + _TOKEN + rb"):[ \t]*+(" + _VALUE + rb")[ \t]*+\r\n")
_FIELDS = re.compile(rb"(?:" + _TOKEN + rb":[ \t]*+" + _VALUE + rb"[ \t]*+\r\n)*+")
_POST = re.compile(rb"POST (/[\x21-\x7e]*+) HTTP/1\.1\r\n")
_STATUS = re.compile(rb"HTTP/1\.1 ([2-9][0-9]{2})(?: [^\x00\n\v\f\r]*+)?+\r\n")
_METHOD = re.compile(_TOKEN)
_TARGET = re.compile(rb"[\x21-\x7e]++")
_LENGTH = re.compile(rb"[0-9]{1,18}+")
_LONG_BLANK_RUN = b" " * (MAX_BLANK_RUN + 1)
_LEFT_TO_H11 = (b"transfer-encoding", b"expect", b"upgrade")
"""Request headers that change what follows."""


_REASONS = {status.value: status.phrase.encode("ascii") for status in HTTPStatus}
_REASONS |= {413: b"Content Too Large", 422: b"Unprocessable Content"}  # Python 3.11 and 3.12 have older ones


class HeadTooLarge(ValueError):
    """A header section exceeds a bound; the message names it."""


class RequestHead(NamedTuple):
    """A POST whose body has a length, on a connection that stays open."""

    target: bytes
    headers: HeaderList
    content_length: int
    """Bytes of its body."""
    end: int
    """Offset of its body."""


class ResponseHead(NamedTuple):
    """A final response whose body is chunked or has a length."""

    status: int
    headers: HeaderList
    content_length: int | None
    """Bytes of its body; None for chunks."""
    keep_alive: bool
    """Whether the connection may carry another exchange."""
    end: int
    """Offset of its body."""


def check_head(data: bytes | bytearray, limit: int) -> None:
    """Raise HeadTooLarge if a header section, or the trailers of a body, exceed the limits on bytes, lines
    or blanks.
    """
    if len(data) > limit:
        raise HeadTooLarge(f"It exceeds the limit of {limit} bytes (max_header_bytes).")
    if data.count(b"\n") > MAX_LINES:
        raise HeadTooLarge(f"It has more than {MAX_LINES} lines.")
    if _LONG_BLANK_RUN in data.replace(b"\t", b" "):
        raise HeadTooLarge(f"It has more than {MAX_BLANK_RUN} blanks in a row.")


def parse_request(data: bytes, limit: int) -> RequestHead | None:
    """Return the request head at the start of `data`, at most `limit` bytes; None if incomplete or left to
    h11.
    """
    end = _end(data, limit)
    line = _POST.match(data, 0, end)
    if line is None:
        return None
    fields = _parse_headers(data, line.end(), end)
    if fields is None:
        return None
    lengths = hosts = 0
    length = b""
    for name, value in fields:
        if name == b"content-length":
            lengths, length = lengths + 1, value
        elif name == b"host":
            hosts += 1
        elif name in _LEFT_TO_H11 or (name == b"connection" and value.lower() != b"keep-alive"):
            return None
    if hosts != 1 or lengths != 1 or not _LENGTH.fullmatch(length):
        return None
    return RequestHead(line[1], fields, int(length), end)


def parse_response(data: bytes, limit: int) -> ResponseHead | None:
    """Return the response head at the start of `data`, at most `limit` bytes; None if incomplete or left to
    h11.
    """
    end = _end(data, limit)
    line = _STATUS.match(data, 0, end)
    if line is None or line[1] in (b"204", b"304"):
        return None
    fields = _parse_headers(data, line.end(), end)
    if fields is None:
        return None
    length, chunked, stays = b"", False, True
    for name, value in fields:
        if name == b"content-length":
            if length or chunked or not _LENGTH.fullmatch(value):
                return None
            length = value
        elif name == b"transfer-encoding":
            if length or chunked or value.lower() != b"chunked":
                return None
            chunked = True
        elif name == b"connection":
            if value.lower() not in (b"keep-alive", b"close"):
                return None
            stays = stays and value.lower() == b"keep-alive"
    if not length and not chunked:
        return None
    return ResponseHead(int(line[1]), fields, None if chunked else int(length), stays, end)


def _end(data: bytes, limit: int) -> int:
    """Return the offset of the body after a complete header section within the bounds; else 0."""
    end = data.find(b"\r\n\r\n", 0, limit) + 4
    if end < 4:
        return 0
    try:
        check_head(data[:end], limit)
    except HeadTooLarge:
        return 0
    return end


def _parse_headers(data: bytes, start: int, end: int) -> HeaderList | None:
    """Return the headers between the first line and the body; None if they are not in the common form."""
    if not _FIELDS.fullmatch(data, start, end - 2):
        return None
    return [(name.lower(), value) for name, value in _FIELD.findall(data, start, end - 2)]


def write_request(method: bytes, target: bytes, fields: Sequence[tuple[bytes, bytes]]) -> bytes | None:
    """Return a request head; None if h11 must decide, as without one host and at most one length."""
    names = [name for name, _ in fields]
    if names.count(b"host") != 1 or names.count(b"content-length") > 1 or b"transfer-encoding" in names:
        return None
    if not _METHOD.fullmatch(method) or not _TARGET.fullmatch(target):
        return None
    return _join_head(b"%b %b HTTP/1.1" % (method, target), fields)


def reason_phrase(status: int) -> bytes:
    """Return the standard reason phrase (RFC 9110 15); empty for an unassigned status.

    It is optional, but some programs (h2load) take a status line without one for a failure.
    """
    return _REASONS.get(status, b"")


def write_response(status: int, fields: Sequence[tuple[bytes, bytes]]) -> bytes | None:
    """Return a response head; None if a header has an illegal character."""
    return _join_head(b"HTTP/1.1 %d %b" % (status, reason_phrase(status)), fields)


def _join_head(first: bytes, fields: Sequence[tuple[bytes, bytes]]) -> bytes | None:
    lines = b"".join([b"%b: %b\r\n" % field for field in fields])
    if b":" in b"".join([name for name, _ in fields]) or lines.count(b"\n") != len(fields):
        return None  # a header must not create another, and its name has no colon
    return b"%b\r\n%b\r\n" % (first, lines) if _FIELDS.fullmatch(lines) else None
