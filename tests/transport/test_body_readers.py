"""Body readers agree with h11 on a connection's bytes, at any split."""

from itertools import pairwise

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qproxy.transport.body_readers import (
    MAX_LINE,
    ChunkedReader,
    ContentLengthReader,
    H11Reader,
    IncompleteBody,
    body_reader_for,
)

HEAD = b"HTTP/1.1 200 OK\r\n%b\r\n"


def read(body, pieces):
    """Return (body, whether it finished, error type)."""
    drained = body.take_buffered()
    for piece in pieces:
        body.feed(piece)
        drained += body.take_buffered()
    try:
        body.raise_error()
    except (h11.RemoteProtocolError, IncompleteBody) as error:
        return drained, body.finished, type(error)
    return drained, body.finished, None


def read_head(fields):
    """Return h11 after a response's head, and the head."""
    http = h11.Connection(h11.CLIENT)
    http.send(h11.Request(method="GET", target="/", headers=[("host", "x")]))
    http.send(h11.EndOfMessage())
    http.receive_data(HEAD % fields)
    return http, http.next_event()


def cuts(data, places):
    edges = [0, *sorted({place % (len(data) + 1) for place in places}), len(data)]
    return [data[a:b] for a, b in pairwise(edges) if a < b]


CASES = {
    "one chunk": (b"5\r\nhello\r\n0\r\n\r\n", b"hello", True, None),
    "extensions and leading zeros": (b'005;a="b" \r\nhello\r\n0;x\r\n\r\n', b"hello", True, None),
    "trailers": (b"2\r\nhi\r\n0\r\nx-a: 1\r\nx-b: 2\r\n\r\n", b"hi", True, None),
    "data that looks like an end": (b"7\r\n0\r\n\r\n\r\n\r\n0\r\n\r\n", b"0\r\n\r\n\r\n", True, None),
    "nothing": (b"0\r\n\r\n", b"", True, None),
    "unfinished": (b"5\r\nhel", b"hel", False, None),
    "unfinished size": (b"2\r\nhi\r\n1", b"hi", False, None),
    "no size": (b"2\r\nhi\r\nxyz\r\n", b"hi", False, h11.RemoteProtocolError),
    "a negative size": (b"-1\r\nhi\r\n", b"", False, h11.RemoteProtocolError),
    "a size in Python's spelling": (b"0x2\r\nhi\r\n", b"", False, h11.RemoteProtocolError),
    "too long for its size": (b"2\r\nhi!\r\n0\r\n\r\n", b"hi", False, h11.RemoteProtocolError),
    "a size without an end": (b"1;" + b"x" * MAX_LINE, b"", False, h11.RemoteProtocolError),
    "a trailer without an end": (b"0\r\n" + b"x" * (MAX_LINE + 1), b"", False, h11.RemoteProtocolError),
    "a size of 17 digits": (b"1" * 17 + b"\r\n", b"", False, h11.RemoteProtocolError),
}


@pytest.mark.parametrize(("data", "drained", "finished", "error"), CASES.values(), ids=CASES)
@pytest.mark.parametrize("size", [1, 2, 10_000])
def test_chunked(data, drained, finished, error, size):
    """Each case yields its valid bytes first and then its error, whole and in small pieces."""
    pieces = [data[start : start + size] for start in range(0, len(data), size)]
    assert read(ChunkedReader(), pieces) == (drained, finished, error)


def test_a_close_during_a_body():
    """A close in the middle of a body truncates it; after its end it changes nothing."""
    assert read(ChunkedReader(), [b"5\r\nhel", b""]) == (b"hel", False, IncompleteBody)
    assert read(H11Reader(read_head(b"content-length: 5\r\n")[0]), [b"hel", b""]) == (
        b"hel",
        False,
        IncompleteBody,
    )
    assert read(H11Reader(read_head(b"")[0]), [b"all of it", b""]) == (b"all of it", True, None)


def test_bytes_after_a_body_make_the_connection_unusable():
    """Bytes after the end are detected: the next response would start with them."""
    body = ChunkedReader(b"0\r\n\r\n")
    assert body.finished
    assert body.reusable
    assert not ChunkedReader(b"0\r\n\r\nHTTP/1.1").reusable


SIZED = {
    "all of it": (5, b"hello", b"hello", True, None),
    "nothing": (0, b"", b"", True, None),
    "unfinished": (5, b"hel", b"hel", False, None),
}


@pytest.mark.parametrize(("length", "data", "drained", "finished", "error"), SIZED.values(), ids=SIZED)
@pytest.mark.parametrize("size", [1, 2, 10_000])
def test_sized(length, data, drained, finished, error, size):
    """A body with a length is read whole and in small pieces, with and without its first bytes in the head's
    read."""
    pieces = [data[start : start + size] for start in range(0, len(data), size)]
    assert read(ContentLengthReader(length), pieces) == (drained, finished, error)
    assert read(ContentLengthReader(length, data[:1]), [data[1:]] if data[1:] else []) == (
        drained,
        finished,
        error,
    )


def test_the_end_of_a_sized_body():
    """A close before the end truncates the body; bytes after it are left out and make the connection
    unusable."""
    assert read(ContentLengthReader(5), [b"hel", b""]) == (b"hel", False, IncompleteBody)
    assert read(ContentLengthReader(5), [b"hello", b""]) == (b"hello", True, None)
    body = ContentLengthReader(2, b"hi!")
    assert (body.take_buffered(), body.finished, body.reusable) == (b"hi", True, False)
    late = ContentLengthReader(2, b"hi")
    assert late.reusable
    late.feed(b"HTTP")
    assert (late.take_buffered(), late.reusable) == (b"hi", False)


def test_the_reader_follows_from_the_head():
    """Only a body that h11 treats as chunked gets the ChunkedReader."""
    assert isinstance(body_reader_for(*read_head(b"transfer-encoding: Chunked\r\n")), ChunkedReader)
    assert isinstance(body_reader_for(*read_head(b"content-length: 5\r\n")), H11Reader)
    assert isinstance(body_reader_for(*read_head(b"")), H11Reader)


@given(
    st.lists(st.binary(max_size=40)),
    st.lists(st.integers(0, 10_000), max_size=20),
    st.binary(max_size=6),
    st.integers(0, 400),
)
def test_agrees_with_h11(parts, places, replacement, position):
    """For any bytes, corrupted or not, cut anywhere: if neither reader raises, both return the same body."""
    sound = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts if part) + b"0\r\n\r\n"
    place = position % len(sound)
    for data in (sound, sound[:place] + replacement + sound[place + len(replacement) :]):
        http, head = read_head(b"transfer-encoding: chunked\r\n")
        from_h11, from_reader = (
            read(H11Reader(http), [data]),
            read(body_reader_for(*read_head(b"transfer-encoding: chunked\r\n")), cuts(data, places)),
        )
        assert isinstance(head, h11.Response)
        if h11.RemoteProtocolError not in (from_h11[2], from_reader[2]):
            assert from_reader == from_h11
        if data is sound:
            assert from_reader == (b"".join(parts), True, None)
