"""Invalid HTTP/2 frames, written by hand, end only their stream or their connection.

As in h2spec, each row is what a client sends after its preface. Another connection to the same app is served
afterwards, and the log has no error: a client's mistakes are not the operator's.
"""

import logging

import h2.events
import hpack
import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from qproxy.http_server import h2 as http2
from tests.examples import examples
from tests.helpers import H2Client, served, world

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = (
    range(10)
)
END_STREAM, END_HEADERS, PADDED = 1, 4, 8
GET = [(":method", "GET"), (":path", "/livez"), (":scheme", "http"), (":authority", "localhost")]
POST = [(":method", "POST"), *GET[1:]]


def frame(kind, flags=0, stream=0, payload=b"", length=None):
    size = len(payload) if length is None else length
    return size.to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def fields(pairs):
    return hpack.Encoder().encode(pairs)


def ask(stream=1, pairs=GET, flags=END_STREAM | END_HEADERS):
    return frame(HEADERS, flags, stream, fields(pairs))


OPEN = ask(1, POST, END_HEADERS)
"""A request without its body."""
FRAMES = {
    "no preface": b"GET / HTTP/1.1\r\n",
    "DATA on stream 0": frame(DATA, 0, 0, b"x"),
    "DATA on an idle stream": frame(DATA, 0, 1, b"x"),
    "DATA after END_STREAM": ask() + frame(DATA, 0, 1, b"x"),
    "DATA with more padding than data": OPEN + frame(DATA, PADDED, 1, b"\x05x"),
    "DATA beyond the window": OPEN + frame(DATA, 0, 1, b"x" * 16_000) * 5,
    "DATA beyond the largest frame": OPEN + frame(DATA, 0, 1, b"x" * 17_000),
    "DATA announced beyond the largest frame": OPEN + frame(DATA, 0, 1, b"", length=2**24 - 1),
    "more DATA than content-length": ask(1, [*POST, ("content-length", "1")], END_HEADERS) + frame(DATA, END_STREAM, 1, b"xx"),
    "less DATA than content-length": ask(1, [*POST, ("content-length", "5")], END_HEADERS) + frame(DATA, END_STREAM, 1, b"xx"),
    "HEADERS on stream 0": ask(0),
    "HEADERS on an even stream": ask(2),
    "HEADERS on a lower stream": ask(5) + ask(3),
    "HEADERS that do not decompress": frame(HEADERS, END_STREAM | END_HEADERS, 1, b"\xff\xff\xff\xff\xff"),
    "HEADERS that point nowhere": frame(HEADERS, END_STREAM | END_HEADERS, 1, b"\xbe"),
    "HEADERS that explode": frame(HEADERS, END_STREAM | END_HEADERS, 1, fields([*GET, ("x", "y" * 4000)]) + b"\xbe" * 12_000),
    "HEADERS with more padding than data": frame(HEADERS, END_STREAM | END_HEADERS | PADDED, 1, b"\xff\x82"),
    "HEADERS that go on as something else": ask(1, GET, END_STREAM) + frame(PING, 0, 0, b"12345678"),
    "HEADERS that go on in another stream": ask(1, GET, END_STREAM) + frame(CONTINUATION, END_HEADERS, 3),
    "HEADERS that never end": ask(1, GET, END_STREAM) + frame(CONTINUATION, 0, 1) * 100,
    "a request without a path": ask(1, [GET[0], *GET[2:]]),
    "a request without a method": ask(1, GET[1:]),
    "a request with two paths": ask(1, [*GET, (":path", "/")]),
    "a request with an unknown pseudo field": ask(1, [*GET, (":odd", "x")]),
    "a request with a status": ask(1, [*GET, (":status", "200")]),
    "pseudo fields after others": ask(1, [*GET[:2], ("x", "y"), *GET[2:]]),
    "a name in upper case": ask(1, [*GET, ("X-Upper", "y")]),
    "a field of the connection": ask(1, [*GET, ("connection", "close")]),
    "TE that is not trailers": ask(1, [*GET, ("te", "gzip")]),
    "a line end in a value": ask(1, [*GET, ("x", "a\r\nb: c")]),
    "a path of blanks": ask(1, [GET[0], (":path", " "), *GET[2:]]),
    "a path of nothing": ask(1, [GET[0], (":path", ""), *GET[2:]]),
    "a path that is a star": ask(1, [GET[0], (":path", "*"), *GET[2:]]),
    "CONNECT": ask(1, [(":method", "CONNECT"), (":authority", "x:1")]),
    "CONNECT for a WebSocket": ask(1, [(":method", "CONNECT"), (":protocol", "websocket"), *GET[1:], ("sec-websocket-version", "13")], END_HEADERS),
    "trailers with a pseudo field": OPEN + ask(1, [(":path", "/")]),
    "trailers that do not end the stream": OPEN + ask(1, [("x", "y")], END_HEADERS),
    "PRIORITY of the wrong size": frame(PRIORITY, 0, 1, b"\0\0\0\0"),
    "PRIORITY on itself": frame(PRIORITY, 0, 1, b"\0\0\0\1\0"),
    "PRIORITY of thousands of streams": b"".join(frame(PRIORITY, 0, 2 * n + 1, b"\0\0\0\0\x10") for n in range(2000)),
    "RST_STREAM on stream 0": frame(RST_STREAM, 0, 0, b"\0\0\0\x08"),
    "RST_STREAM on an idle stream": frame(RST_STREAM, 0, 1, b"\0\0\0\x08"),
    "RST_STREAM of the wrong size": OPEN + frame(RST_STREAM, 0, 1, b"\0\0"),
    "SETTINGS in a stream": frame(SETTINGS, 0, 1),
    "SETTINGS of the wrong size": frame(SETTINGS, 0, 0, b"\0\0\0"),
    "SETTINGS acknowledged with a payload": frame(SETTINGS, 1, 0, b"\0\1\0\0\0\0"),
    "SETTINGS with an odd window": frame(SETTINGS, 0, 0, b"\0\4\xff\xff\xff\xff"),
    "SETTINGS with an odd frame size": frame(SETTINGS, 0, 0, b"\0\5\0\0\0\1"),
    "SETTINGS with an odd push": frame(SETTINGS, 0, 0, b"\0\2\0\0\0\7"),
    "SETTINGS by the hundred": frame(SETTINGS, 0, 0, b"\0\3\0\0\0\x64") * 500,
    "a push": frame(PUSH_PROMISE, END_HEADERS, 1, b"\0\0\0\2" + fields(GET)),
    "PING of the wrong size": frame(PING, 0, 0, b"1234"),
    "PING in a stream": frame(PING, 0, 1, b"12345678"),
    "PING by the hundred": frame(PING, 0, 0, b"12345678") * 500,
    "GOAWAY in a stream": frame(GOAWAY, 0, 1, b"\0" * 8),
    "GOAWAY": ask() + frame(GOAWAY, 0, 0, b"\0" * 8),
    "WINDOW_UPDATE of nothing": frame(WINDOW_UPDATE, 0, 0, b"\0\0\0\0"),
    "WINDOW_UPDATE of nothing in a stream": OPEN + frame(WINDOW_UPDATE, 0, 1, b"\0\0\0\0"),
    "WINDOW_UPDATE beyond the largest window": frame(WINDOW_UPDATE, 0, 0, b"\x7f\xff\xff\xff") * 2,
    "WINDOW_UPDATE of the wrong size": frame(WINDOW_UPDATE, 0, 0, b"\0\0"),
    "CONTINUATION of nothing": frame(CONTINUATION, END_HEADERS, 1, fields(GET)),
    "an unknown frame": frame(0xBB, 0xFF, 7, b"whatever") + ask(),
    "empty DATA by the hundred": OPEN + frame(DATA, 0, 1) * 500,
    "half a frame": frame(HEADERS, 0, 1, fields(GET))[:-3],
}  # fmt: skip


async def send_and_close(app, data):
    """Send bytes and close, whatever the server does meanwhile."""
    async with served(app, keep_alive_timeout=5) as stream:
        try:
            await stream.send_all(data)
            await trio.testing.wait_all_tasks_blocked()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        await trio.aclose_forcefully(stream)
        await trio.testing.wait_all_tasks_blocked()


async def expect_service(app):
    async with served(app) as stream:
        client = H2Client(stream)
        await client.begin()
        await client.send("GET", "/livez")
        assert dict((await client.event(h2.events.ResponseReceived)).headers)[b":status"] == b"200"


@pytest.mark.parametrize("data", FRAMES.values(), ids=FRAMES)
async def test_an_invalid_frame(data, caplog, autojump_clock):
    """An invalid frame closes no other connection, and logs no error."""
    async with world() as it:
        await send_and_close(it.app, PREFACE + frame(SETTINGS) + data)
        await expect_service(it.app)
        assert len(it.server.state.in_flight) == 0
        assert not [r for r in caplog.records if r.levelno >= logging.ERROR]


async def test_an_invalid_preface(caplog, autojump_clock):
    """An invalid preface closes no other connection, and logs no error."""
    async with world() as it:
        for data in (
            PREFACE,
            PREFACE[:-4],
            PREFACE + frame(PING, 0, 0, b"12345678"),
            PREFACE + b"\xff" * 100,
        ):
            await send_and_close(it.app, data)
        await expect_service(it.app)
        assert not [r for r in caplog.records if r.levelno >= logging.ERROR]


@given(
    st.lists(
        st.builds(
            lambda kind, payload: frame(kind, 0, 1, payload),
            st.sampled_from([DATA, HEADERS, PING]),
            st.binary(max_size=40),
        ),
        min_size=1,
        max_size=3,
    ),
    st.lists(st.integers(1, 4000), max_size=10),
)
def test_frames_are_split_at_any_cut(sequence, cuts):
    """Splitting keeps the bytes at any cut, and no piece has more than FRAMES + 1 frame ends."""
    data = PREFACE + b"".join(sequence * 40)
    frames, pieces, start = http2.Frames(), [], 0
    for end in [*sorted({cut for cut in cuts if cut < len(data)}), len(data)]:
        pieces += list(frames.split(data[start:end]))
        start = end
    assert b"".join(pieces) == data
    ends, at = [], len(PREFACE)
    for one in sequence * 40:
        at += len(one)
        ends.append(at)
    at = 0
    for piece in pieces:
        assert sum(at < end <= at + len(piece) for end in ends) <= http2.FRAMES + 1
        at += len(piece)


def test_long_frames_are_split_by_their_size():
    """A frame of many headers, settings or size changes is costly: few of them form one piece. DATA is
    not."""
    frames = http2.Frames()
    assert list(frames.split(PREFACE)) == [PREFACE]
    long = frame(HEADERS, 0, 1, bytes(16_384))
    assert [len(piece) for piece in frames.split(long * 4)] == [2 * len(long)] * 2
    assert len(list(frames.split(frame(DATA, 0, 1, bytes(16_384)) * 4))) == 1


BLOCKS = {
    "table size updates": frame(HEADERS, END_STREAM | END_HEADERS, 1, b"\x20" * 3 + fields(GET)),
    "long table size updates": frame(HEADERS, END_STREAM | END_HEADERS, 1, b"\x3f\x80\x00" * 3 + fields(GET)),
    "CONTINUATION beyond the largest head": frame(HEADERS, END_STREAM, 1, fields(GET))
    + frame(CONTINUATION, 0, 1, b"\0\1a\0" * 4096) * 5,
}  # fmt: skip


@pytest.mark.parametrize("data", BLOCKS.values(), ids=BLOCKS)
async def test_a_costly_header_block(data, autojump_clock):
    """A costly header block ends its connection: hpack's time grows with the square of a block and its
    entries."""
    async with world() as it, served(it.app) as stream:
        await stream.send_all(PREFACE + frame(SETTINGS) + data)
        received = b""
        while piece := await stream.receive_some(4096):
            received += piece
        assert received.count(frame(GOAWAY, 0, 0, b"\0" * 4)[:1] + b"\0\x08\7\0\0\0\0\0") == 1


async def test_a_block_may_change_the_size_of_the_table_twice(autojump_clock):
    """A block may change the table size twice, to the least and to the last value since the block before (RFC
    7541 4.2)."""
    async with world() as it, served(it.app) as stream:
        ask = frame(HEADERS, END_STREAM | END_HEADERS, 1, b"\x20\x3f\xe1\x1f" + fields(GET))
        client = H2Client(stream)
        await stream.send_all(PREFACE + frame(SETTINGS) + ask)
        client.http.initiate_connection()
        client.http.send_headers(1, GET, end_stream=True)
        client.http.data_to_send()
        assert dict((await client.event(h2.events.ResponseReceived)).headers)[b":status"] == b"200"


frames_at_random = st.lists(
    st.one_of(
        st.sampled_from(list(FRAMES.values())),
        st.builds(frame, st.integers(0, 10), st.integers(0, 255), st.integers(0, 5), st.binary(max_size=20)),
        st.sampled_from([ask(1), ask(3), ask(5), OPEN]),
    ),
    max_size=6,
).map(b"".join)


def test_frames_at_random(caplog):
    """Any sequence of such frames closes no other connection, and logs no error."""

    @given(st.lists(frames_at_random, min_size=10, max_size=10))
    @examples(15)
    def check(sequences):
        trio.run(play, sequences, clock=trio.testing.MockClock(autojump_threshold=0))

    async def play(sequences):
        async with world() as it:
            for data in sequences:
                await send_and_close(it.app, PREFACE + frame(SETTINGS) + data)
            await expect_service(it.app)
            assert not [r for r in caplog.records if r.levelno >= logging.ERROR]

    check()
