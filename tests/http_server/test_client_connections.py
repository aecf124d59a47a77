"""A connection without a complete request lasts at most the idle time, and no connection lasts forever."""

import math
from contextlib import suppress

import h2.events
import hpack
import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from qproxy import http_server
from qproxy.bootstrap.app import serve
from qproxy.config import Config
from qproxy.http_server import h2 as http2
from tests.examples import examples
from tests.helpers import H1Client, H2Client, accounts, served, world
from tests.http_server.test_h2_frames import (
    CONTINUATION,
    END_HEADERS,
    GET,
    HEADERS,
    PING,
    POST,
    PREFACE,
    PRIORITY,
    SETTINGS,
    WINDOW_UPDATE,
    ask,
    fields,
    frame,
)
from tests.http_server.test_patches import answer

TIMEOUT = 7.0
BEGIN = PREFACE + frame(SETTINGS)
PINGS = frame(PING, 0, 0, b"12345678")
OPENINGS = {
    "nothing": b"",
    "half a request line": b"GET / HT",
    "a head without its end": b"POST / HTTP/1.1\r\nhost: a\r\n",
    "half a preface": PREFACE[:18],
    "a preface without its last byte": PREFACE[:-1],
    "a preface": PREFACE,
    "a preface and SETTINGS": BEGIN,
    "half a frame": BEGIN + b"\0\0\x08\6",
    "a frame's head": BEGIN + frame(HEADERS, END_HEADERS, 1, b"", length=100),
    "HEADERS without END_HEADERS": BEGIN + frame(HEADERS, 0, 1, fields(GET)[:3]),
    "HEADERS that go on": BEGIN + frame(HEADERS, 0, 1, fields(GET)[:3]) + frame(CONTINUATION, 0, 1,
        fields(GET)[3:5]),
    "PRIORITY": BEGIN + frame(PRIORITY, 0, 1, b"\0\0\0\0\x10"),
    "a window": BEGIN + frame(WINDOW_UPDATE, 0, 0, b"\0\0\1\0"),
    "an unknown frame": BEGIN + frame(0xBB, 0, 0, b"x"),
}  # fmt: skip
TRICKLES = {
    "silence": b"",
    "pings": PINGS,
    "windows": frame(WINDOW_UPDATE, 0, 0, b"\0\0\0\1"),
    "settings": frame(SETTINGS),
    "bytes": b"x",
}


async def closed_after(stream, trickle=b""):
    """Return the time at which the server closes the connection, while `trickle` is sent each second."""
    async with trio.open_nursery() as nursery:

        async def send():
            try:
                while trickle:
                    await trio.sleep(1)
                    await stream.send_all(trickle)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass

        nursery.start_soon(send)
        with trio.move_on_after(100_000):
            while await stream.receive_some(65536):
                pass
        nursery.cancel_scope.cancel()
    return trio.current_time()


@pytest.mark.parametrize("opening", OPENINGS.values(), ids=OPENINGS)
@pytest.mark.parametrize("pause", [0, 5])
async def test_an_opening_without_a_request(opening, pause, autojump_clock):
    """The idle time starts with the connection, however late the opening arrives."""
    async with served(answer, keep_alive_timeout=TIMEOUT) as stream:
        await trio.sleep(pause)
        await stream.send_all(opening)
        assert await closed_after(stream) == TIMEOUT


@pytest.mark.parametrize("trickle", TRICKLES.values(), ids=TRICKLES)
@pytest.mark.parametrize("opening", [b"", BEGIN, BEGIN + b"\0\0\x08\6", PREFACE[:18]])
async def test_bytes_without_a_request(opening, trickle, autojump_clock):
    """Bytes short of a whole request do not extend the idle time (invalid ones end it sooner)."""
    async with served(answer, keep_alive_timeout=TIMEOUT) as stream:
        await stream.send_all(opening)
        assert await closed_after(stream, trickle) <= TIMEOUT


IDLE_FRAMES = st.sampled_from([
    PINGS, frame(SETTINGS), frame(SETTINGS, 1), frame(WINDOW_UPDATE, 0, 0, b"\0\0\0\1"),
    frame(PRIORITY, 0, 3, b"\0\0\0\0\x10"),
    frame(0xBB, 0xFF, 0, b"x" * 9), frame(HEADERS, 0, 1, fields(GET)), frame(CONTINUATION, 0, 1), BEGIN,
    b"\0", b"x",
])  # fmt: skip


def test_openings_at_random():
    """Frames without a request, in any order, cut anywhere and at any pace, hold a connection no longer than
    the idle time."""

    @given(st.lists(IDLE_FRAMES, max_size=12), st.integers(0, 400), st.integers(1, 60), st.floats(0.1, 5))
    @examples(100)
    def check(sequence, end, size, pause):
        data = (BEGIN + b"".join(sequence))[:end]
        trio.run(play, data, size, pause, clock=trio.testing.MockClock(autojump_threshold=0))

    async def play(data, size, pause):
        async with served(answer, keep_alive_timeout=TIMEOUT) as stream, trio.open_nursery() as nursery:

            async def send():
                with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                    for begin in range(0, len(data), size):
                        await stream.send_all(data[begin : begin + size])
                        await trio.sleep(pause)

            nursery.start_soon(send)
            assert await closed_after(stream) <= TIMEOUT
            nursery.cancel_scope.cancel()

    check()


REFUSED = {
    "CONNECT": ask(1, [(":method", "CONNECT"), (":authority", "x:1")]),
    "a path that is no text": ask(1, [GET[0], (":path", b"/\xff"), *GET[2:]]),
    "a WebSocket of no version": ask(1, [(":method", "CONNECT"), (":protocol", "websocket"), *GET[1:]],
        END_HEADERS),
    "a request": ask(),
    "a request that is reset": ask() + frame(3, 0, 1, b"\0\0\0\x08"),
}  # fmt: skip


@pytest.mark.parametrize("request_frames", REFUSED.values(), ids=REFUSED)
async def test_idle_time_after_a_closed_stream(request_frames, autojump_clock):
    """The idle time restarts when a stream closes, even a rejected one; pings do not extend it."""
    async with served(answer, keep_alive_timeout=TIMEOUT) as stream:
        await trio.sleep(3)
        await stream.send_all(BEGIN + request_frames)
        assert await closed_after(stream, PINGS) == 3 + TIMEOUT


async def test_a_body_that_never_comes(autojump_clock):
    """A whole head without its body is closed at `body_timeout` plus the idle time."""
    post = [*POST, ("content-type", "application/json")]
    post[1] = (":path", "/v1/chat/completions")
    async with world(client_body_timeout=20.0) as it, served(it.app, keep_alive_timeout=TIMEOUT) as stream:
        await stream.send_all(BEGIN + frame(HEADERS, END_HEADERS, 1, hpack.Encoder().encode(post)))
        assert await closed_after(stream, PINGS) == 20 + TIMEOUT


async def test_a_connect_that_asks_for_an_upgrade(caplog, autojump_clock):
    """A CONNECT that asks to upgrade to HTTP/2 gets an HTTP/1.1 response, and logs no error."""
    async with served(answer) as stream:
        await stream.send_all(
            b"CONNECT x:1 HTTP/1.1\r\nhost: x\r\nconnection: upgrade, http2-settings\r\nupgrade: "
            b"h2c\r\nhttp2-settings: \r\n\r\n"
        )
        assert b" 401 " in await stream.receive_some(65536)
    assert not caplog.records


@pytest.fixture(params=[0.9, 1.1])
def age(request, monkeypatch):
    """Return the seconds after which a connection is old."""
    monkeypatch.setattr(http_server.TCPServer, "max_age", 1000.0)
    monkeypatch.setattr("random.uniform", lambda low, high: {0.9: low, 1.1: high}[request.param])
    return 1000.0 * request.param


@pytest.mark.parametrize("way", [[], [("connection", "keep-alive, te")]], ids=["by hand", "by h11"])
async def test_the_age_of_http1(way, age, autojump_clock):
    """The first response after max_age, and none before it, has `connection: close`."""
    async with served(answer, keep_alive_timeout=10_000) as stream:
        client = H1Client(stream)
        for moment, last in ((0, False), (age - 1, False), (age, True)):
            await trio.sleep(moment - trio.current_time())
            await client.send("POST", "/", b"", way)
            head = await client.event()
            assert ((b"connection", b"close") in head.headers.raw_items()) is last
            while type(await client.event()).__name__ != "EndOfMessage":
                pass
            if not last:
                client.http.start_next_cycle()
        assert await stream.receive_some(10) == b""


class Slow:
    """An app that finishes its response when `end` is set."""

    def __init__(self):
        self.end = trio.Event()

    async def __call__(self, scope, receive, send):
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"a", "more_body": True})
            if scope["path"] == "/slow":
                await self.end.wait()
            await send({"type": "http.response.body", "body": b"b"})


def frames(data):
    """Yield (kind, stream, payload) of each frame in `data`."""
    while data:
        size = int.from_bytes(data[:3], "big")
        yield data[3], int.from_bytes(data[5:9], "big"), data[9 : 9 + size]
        data = data[9 + size :]


async def received_frames(stream):
    """Return (kind, stream, payload) of each frame that the server has sent."""
    await trio.testing.wait_all_tasks_blocked()
    with trio.move_on_after(0.001):
        return list(frames(bytes(await stream.receive_some(100_000))))
    return []


def goaways(seen):
    """Return the last stream and the error of each GOAWAY."""
    return [(int.from_bytes(payload[:4], "big"), payload[4:8]) for kind, _, payload in seen if kind == 7]


def request(stream, path="/"):
    return ask(stream, [GET[0], (":path", path), *GET[2:]])


async def test_the_age_of_http2(age, autojump_clock, caplog):
    """An old connection gets a GOAWAY after its next response, serves a moment longer, and then refuses
    streams."""
    notice = [(http2.MAX_STREAM, b"\0\0\0\0")]
    async with served(Slow(), keep_alive_timeout=10_000) as stream:
        await stream.send_all(BEGIN + request(1))
        assert goaways(await received_frames(stream)) == []
        await trio.sleep(age)
        await stream.send_all(request(3))
        seen = await received_frames(stream)
        assert [(kind, number) for kind, number, _ in seen if kind in (0, 7)][-1] == (7, 0)
        assert goaways(seen) == notice
        await stream.send_all(request(5))  # it may have been in flight
        assert {number for kind, number, _ in await received_frames(stream) if kind == HEADERS} == {5}
        await trio.sleep(http2.NOTICE_SECONDS)
        await stream.send_all(request(7) + request(9) + frame(PING, 0, 0, b"12345678"))
        seen = await received_frames(stream)
        assert goaways(seen) == [(5, b"\0\0\0\0")]
        assert (
            3,
            7,
            b"\0\0\0\x07",
        ) in seen  # RST_STREAM, REFUSED_STREAM: the request may be resent elsewhere
        assert await closed_after(stream) == trio.current_time()
    assert not caplog.records


async def test_the_age_of_http2_with_streams(age, autojump_clock):
    """Active streams finish normally; a connection that is never idle gets its GOAWAY between them."""
    app = Slow()
    async with served(app, keep_alive_timeout=10_000) as stream:
        await stream.send_all(BEGIN + request(1, "/slow"))
        await trio.sleep(age)
        await stream.send_all(request(3))
        assert goaways(await received_frames(stream)) == []
        await trio.sleep(http2.RETIREMENT_TIMEOUT)
        await stream.send_all(request(5))
        assert goaways(await received_frames(stream)) == [(http2.MAX_STREAM, b"\0\0\0\0")]
        await trio.sleep(http2.NOTICE_SECONDS)
        await stream.send_all(request(7) + request(9))
        seen = await received_frames(stream)
        assert [number for kind, number, _ in seen if kind == 3] == [7, 9]
        assert goaways(seen) == [(5, b"\0\0\0\0")]
        app.end.set()
        assert (0, 1, b"b") in await received_frames(stream)
        await closed_after(stream)
        assert trio.current_time() == age + http2.RETIREMENT_TIMEOUT + http2.NOTICE_SECONDS


async def test_a_client_library_survives_the_age(age, autojump_clock):
    """python-h2, which drops active streams at a GOAWAY, gets all of its responses."""
    async with served(Slow(), keep_alive_timeout=10_000) as stream:
        client = H2Client(stream)
        await client.begin()
        await client.send("GET", "/")
        assert await client.event(h2.events.StreamEnded)
        await trio.sleep(age)
        await client.send("GET", "/")
        assert await client.event(h2.events.StreamEnded)
        assert await client.event(h2.events.ConnectionTerminated)


@pytest.mark.parametrize(("setting", "seconds"), [(0, math.inf), (300.0, 300.0)])
async def test_the_setting(setting, seconds, monkeypatch, tmp_path):
    """`max_client_connection_age` sets the server's limit; 0 means none."""
    monkeypatch.setattr(http_server.TCPServer, "max_age", 1.0)
    monkeypatch.setenv("QPROXY_HOME", str(tmp_path))
    config = Config(port=0, max_client_connection_age=setting, accounts=accounts("one"))
    async with trio.open_nursery() as nursery:
        await nursery.start(serve, config)
        assert http_server.TCPServer.max_age == seconds
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("path", [b"/v1/chat/completions", b"/nowhere"])
async def test_trailers_without_end(path, caplog, autojump_clock):
    """Trailers without an end close their connection, before or after the response, and log no error."""
    async with world() as it, served(it.app) as stream:
        head = b"POST %b HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n" % path
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            await stream.send_all(head + b"transfer-encoding: chunked\r\n\r\n0\r\n")
            for _ in range(40):
                await stream.send_all(b"a: b\r\n" * 1000)
            while await stream.receive_some(65536):
                pass
        await trio.testing.wait_all_tasks_blocked()
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
