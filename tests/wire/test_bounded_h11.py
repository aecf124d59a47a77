"""The bounds of h11's input: the same messages within the bounds, and an error beyond them."""

import subprocess
import sys
from contextlib import nullcontext
from itertools import pairwise
from typing import Any

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qproxy.transport import UpstreamTransport
from qproxy.transport.body_readers import MAX_TRAILERS, ChunkedReader
from qproxy.wire import http1
from qproxy.wire.bounded_h11 import MAX_CHUNK_LINE, BoundedConnection
from qproxy.wire.errors import UpstreamError
from qproxy.wire.http1 import MAX_BLANK_RUN, MAX_LINES
from tests.defaults import transport_limits
from tests.examples import examples
from tests.helpers import H1Client, served, world
from tests.hostile_heads import CHUNKED
from tests.transport.test_transport import Net, fetch

LIMIT = 64 * 1024
CPU_SECONDS = 30
"""The bound for all attacks together, which took 3 s; before the patterns were linear a single one took
longer."""
GET = b"GET / HTTP/1.1\r\nhost: a\r\n"
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n"
POST = b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n"


def test_adversarial_heads_take_linear_time():
    """Runs of each kind of byte in each place of a head or a chunk's size, with a near miss behind them, cost
    no time."""
    command = [sys.executable, "-m", "tests.hostile_heads", str(CPU_SECONDS)]
    assert int(subprocess.run(command, check=True, capture_output=True, timeout=300).stdout) > 25_000


def events(http, data, cuts=()):
    """Return h11's events for bytes that arrive in parts, up to the end of one message or an error."""
    places = [0, *sorted({cut % len(data) for cut in cuts} - {0}), len(data)]
    seen: list[Any] = []
    try:
        for piece in [*(data[begin:end] for begin, end in pairwise(places)), b""]:
            http.receive_data(piece)
            while (event := http.next_event()) not in (h11.NEED_DATA, h11.PAUSED):
                if isinstance(event, h11.Data) and isinstance(seen[-1], bytes):
                    seen[-1] += bytes(event.data)
                else:
                    seen.append(bytes(event.data) if isinstance(event, h11.Data) else event)
                if isinstance(event, h11.EndOfMessage | h11.ConnectionClosed):
                    return seen, http.trailing_data[0]
    except h11.RemoteProtocolError as error:
        return seen, error.error_status_hint
    return seen, None


MESSAGES = [
    GET + b"\r\n" + GET + b"\r\n",
    POST + b"\r\nhi" + GET + b"\r\n",
    POST + b"\r\nh",
    CHUNKED + b"2\r\nhi\r\n003;a=b\r\n\r\n\r\r\n0\r\n\r\n" + GET + b"\r\n",
    CHUNKED + b"2\r\nhi\r\n0\r\nA: b\r\nC:  d \r\n\r\nrest",
    CHUNKED + b"2 \r\nhi\r\n0\r\nA: b\r\n c\r\n\r\nrest",
    CHUNKED + b"2\nhi\n0\n\n",
    CHUNKED + b"2\r\nhixx0\r\n\r\n",
    CHUNKED + b"xyz\r\n",
    CHUNKED + b"0\r\nno trailer\r\n\r\n",
    GET + b"connection: upgrade\r\nupgrade: x\r\n\r\nwhatever",
    GET.replace(b"1.1", b"1.0") + b"\r\n",
    GET.replace(b"\r", b"") + b"\n",
    b"\r\n" + GET + b"\r\n",
    b"\x16\x03\x01" + GET,
]


@examples(500)
@given(
    st.sampled_from(MESSAGES),
    st.lists(st.integers(0, 500), max_size=6),
    st.integers(0, 200),
    st.sampled_from([b"", b"\r", b"\n", b"\r\n", b" ", b"\0", b":", b"0", b"a"]),
)
def test_the_same_events_as_h11(message, cuts, place, spoil):
    """Within the bounds the events are those of h11, however a message is damaged and cut."""
    place %= len(message) + 1
    data = message[:place] + spoil + message[place + (1 if spoil else 0) :]
    plain = events(h11.Connection(h11.SERVER), data, cuts)
    assert events(BoundedConnection(h11.SERVER, LIMIT), data, cuts) == plain


@pytest.mark.parametrize("message", MESSAGES)
def test_the_same_events_byte_by_byte(message):
    """The events do not depend on how the bytes are split."""
    bounded = events(BoundedConnection(h11.SERVER, LIMIT), message, range(len(message)))
    assert bounded == events(h11.Connection(h11.SERVER), message, range(len(message)))


def large(kind, start, extra):
    """Return a head with the maximum of some property, and `extra` more."""
    if kind == "bytes":
        return start + b"a: " + b"x" * (LIMIT - len(start) - len(b"a: \r\n\r\n") + extra) + b"\r\n\r\n"
    if kind == "lines":
        return start + b"a:b\r\n" * (MAX_LINES - start.count(b"\n") - 1 + extra) + b"\r\n"
    blanks = (b" \t" * MAX_BLANK_RUN)[: MAX_BLANK_RUN + extra]
    return start + (b"a: b%b\r\n\r\n" if kind == "blanks behind" else b"a:%bb\r\n\r\n") % blanks


KINDS = pytest.mark.parametrize("kind", ["bytes", "lines", "blanks", "blanks behind"])


@KINDS
@pytest.mark.parametrize("method", [b"GET", b"POST", b"FROB", b"OPTIONS"])
async def test_bounds_of_a_request_head(method, kind, autojump_clock):
    """A head at its limit is served, one above it is a 431 with a message, for any method and any cut."""
    start = POST.replace(b"POST", method).replace(b": 2", b": 0")
    async with world() as it:
        for extra in (0, 1):
            head = large(kind, start, extra)
            for size in (len(head), 1000):
                async with served(it.app, h11_max_incomplete_size=LIMIT) as stream:
                    for begin in range(0, len(head), size):
                        await stream.send_all(head[begin : begin + size])
                    client = H1Client(stream)
                    client.http.send(h11.Request(method="GET", target="/", headers=[("host", "x")]))
                    status, body = await client.response()
                    assert (status == 431) is bool(extra)
                    assert (b"max_header_bytes" in body) is bool(extra)


@KINDS
def test_bounds_of_heads_parsed_by_hand(kind):
    """Heads parsed without h11 have the same bounds."""
    for start, read in ((POST, http1.parse_request), (OK, http1.parse_response)):
        assert read(large(kind, start, 0) + b"hi", LIMIT) is not None
        assert read(large(kind, start, 1) + b"hi", LIMIT) is None


@KINDS
@pytest.mark.parametrize("start", [OK, b"HTTP/1.1 103 Hints\r\n", OK.replace(b"1.1", b"1.0")])
async def test_bounds_of_an_upstream_head(start, kind, nursery, autojump_clock):
    """A head at its limit is read, one above it is an invalid HTTP response."""
    after = b"hi" if start != b"HTTP/1.1 103 Hints\r\n" else OK + b"\r\nhi"
    for size in (LIMIT * 2, 1000):
        for extra in (0, 1):
            data = large(kind, start, extra) + after
            script = [data[begin : begin + size] for begin in range(0, len(data), size)]
            transport = UpstreamTransport(
                transport_limits(max_head_bytes=LIMIT), connect=Net(nursery, script).connect
            )
            if extra:
                with pytest.raises(UpstreamError) as caught:
                    await fetch(transport)
                assert caught.value.code == "upstream_invalid_response"
            else:
                assert await fetch(transport) == (200, b"hi")


BODIES = {
    "extension": (b"1;" + b"x" * (MAX_CHUNK_LINE - 4) + b"\r\nx\r\n0\r\n\r\n",
        b"1;" + b"x" * MAX_CHUNK_LINE + b"\r\n"),
    "no end of a size": (b"1\r\nx\r\n0\r\n\r\n", b"1" * MAX_CHUNK_LINE),
    "trailers": (b"0\r\n" + large("bytes", b"", 0), b"0\r\n" + large("bytes", b"", 1)),
    "lines of trailers": (b"0\r\n" + large("lines", b"", 0), b"0\r\n" + large("lines", b"", 1)),
    "blanks in trailers": (b"0\r\n" + large("blanks", b"", 0), b"0\r\n" + large("blanks", b"", 1)),
}  # fmt: skip


@pytest.mark.parametrize(("most", "more"), BODIES.values(), ids=BODIES)
@pytest.mark.parametrize("size", [10**6, 999])
def test_bounds_of_chunks(most, more, size):
    """The lines of chunk sizes and the trailers of a request are bounded, too."""
    for body, ends in ((most, True), (more, False)):
        http, seen = BoundedConnection(h11.SERVER, LIMIT), []
        with pytest.raises(h11.RemoteProtocolError) if not ends else nullcontext() as caught:
            for begin in range(0, len(CHUNKED + body), size):
                http.receive_data((CHUNKED + body)[begin : begin + size])
                while (event := http.next_event()) not in (h11.NEED_DATA, h11.PAUSED):
                    seen.append(event)
        assert isinstance(seen[-1], h11.EndOfMessage) is ends
        assert caught is None or caught.value.error_status_hint == 431


@pytest.mark.parametrize(
    "body",
    [
        b"1;" + b"x" * 5000 + b"\r\n",
        b"1" + b" " * 300 + b"\r\n",
        b"0\r\n" + b"a" * 5000 + b"\r\n",
        b"0\r\n" + (b"a:" + b"b" * 1000 + b"\r\n") * (MAX_TRAILERS // 1000 + 1),
    ],
    ids=["extension", "blanks", "trailer", "trailers"],
)
def test_bounds_of_an_upstreams_chunks(body):
    """A response whose chunks are parsed without h11 has the same bounds."""
    for size in (len(body), 500):
        chunks = ChunkedReader()
        for begin in range(0, len(body), size):
            chunks.feed(body[begin : begin + size])
        with pytest.raises(h11.RemoteProtocolError):
            chunks.raise_error()
