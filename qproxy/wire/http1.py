"""The heads of HTTP/1.1 messages, written as nearly all of them are.

A head is the costliest part of a short exchange, and nearly every head says the same few things: a length or chunks, a
connection that stays.  Those are read and written here, with one regular expression each.  Whatever is longer, older,
rarer or wrong (another method or version, line folding, bare line feeds, two lengths, a coding, an upgrade, `Expect`,
`Connection: close` of a request) is not read: the functions give None, and h11 has the word.  Nothing is accepted that
h11 refuses, and it is read as h11 reads it (`tests/wire/test_http1.py` compares them).

Every repeat here is possessive: a pattern never tries a byte twice, so what it costs is linear in what it is given.
`check` bounds a head of either end before any pattern, these or h11's, looks at it.

RFC 9112 2-6, RFC 9110 5.5 and 5.6.2.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

HeaderList: TypeAlias = list[tuple[bytes, bytes]]
"""In order; names in lower case."""

MAX_LINES = 2048
"""Of a head: as many as HTTP/2 takes in 64 KiB, where each field counts 32 bytes more (RFC 9113 6.5.2)."""
MAX_BLANK_RUN = 256
"""In a row: h11's pattern for a field tries every cut of a run of blanks, so its cost is the square of this."""

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
"""Fields of a request that change what follows it."""


class HeadTooLarge(ValueError):
    """A head is beyond a bound; the message names it."""


class RequestHead(NamedTuple):
    """A POST whose body has a length, on a connection that stays."""

    target: bytes
    headers: HeaderList
    content_length: int
    """Bytes of its body."""
    end: int
    """Where its body begins."""


class ResponseHead(NamedTuple):
    """A final answer with a body in chunks, or with a length."""

    status: int
    headers: HeaderList
    content_length: int | None
    """Bytes of its body; None for chunks."""
    keep_alive: bool
    """Whether the connection may carry another exchange."""
    end: int
    """Where its body begins."""


def check_head(data: bytes | bytearray, limit: int) -> None:
    """Raise HeadTooLarge when a head, or the trailers of a body, have more bytes, lines or blanks than they may have."""
    if len(data) > limit:
        raise HeadTooLarge(f"It has more than max_header_bytes ({limit}).")
    if data.count(b"\n") > MAX_LINES:
        raise HeadTooLarge(f"It has more than {MAX_LINES} lines.")
    if _LONG_BLANK_RUN in data.replace(b"\t", b" "):
        raise HeadTooLarge(f"It has more than {MAX_BLANK_RUN} blanks in a row.")


def parse_request(data: bytes, limit: int) -> RequestHead | None:
    """The head at the beginning of `data`, of `limit` bytes at most; None when it is not whole, or h11's to judge."""
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
    """The head at the beginning of `data`, of `limit` bytes at most; None when it is not whole, or h11's to judge."""
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
    """Where the body begins behind a head that is whole and within the bounds; 0 for any other."""
    end = data.find(b"\r\n\r\n", 0, limit) + 4
    if end < 4:
        return 0
    try:
        check_head(data[:end], limit)
    except HeadTooLarge:
        return 0
    return end


def _parse_headers(data: bytes, start: int, end: int) -> HeaderList | None:
    """The fields between the first line and the body; None when they are not plain."""
    if not _FIELDS.fullmatch(data, start, end - 2):
        return None
    return [(name.lower(), value) for name, value in _FIELD.findall(data, start, end - 2)]


def write_request(method: bytes, target: bytes, fields: Sequence[tuple[bytes, bytes]]) -> bytes | None:
    """A request's head with these fields, a host and at most one length among them; None when h11 must judge it."""
    names = [name for name, _ in fields]
    if names.count(b"host") != 1 or names.count(b"content-length") > 1 or b"transfer-encoding" in names:
        return None
    if not _METHOD.fullmatch(method) or not _TARGET.fullmatch(target):
        return None
    return _join_head(b"%b %b HTTP/1.1" % (method, target), fields)


def write_response(status: int, fields: Sequence[tuple[bytes, bytes]]) -> bytes | None:
    """A response's head; None when a field has what no field may have."""
    return _join_head(b"HTTP/1.1 %d " % status, fields)


def _join_head(first: bytes, fields: Sequence[tuple[bytes, bytes]]) -> bytes | None:
    lines = b"".join([b"%b: %b\r\n" % field for field in fields])
    if b":" in b"".join([name for name, _ in fields]) or lines.count(b"\n") != len(fields):
        return None  # a field may not make another, nor a name have a value of its own
    return b"%b\r\n%b\r\n" % (first, lines) if _FIELDS.fullmatch(lines) else None
