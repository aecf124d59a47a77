"""Patches of Hypercorn bound a client's use: windows, frames, upgrades, vanished peers.

As in test_patches: the patched server works, and stock Hypercorn still needs the patch.
"""

import socket
from typing import Any

import h2.events
import pytest
import trio
import trio.testing

from qproxy import http_server
from qproxy.http_server import tcp_server
from tests.helpers import H1Client, H2Client
from tests.http_server.test_h2_frames import DATA, PREFACE, SETTINGS, frame
from tests.http_server.test_patches import Endless, answer, connection

BOTH = pytest.mark.parametrize("stock", [True, False], ids=["stock", "mended"])


@BOTH
async def test_a_window_that_stays_closed(stock, monkeypatch, autojump_clock):
    """A client that reads but opens no window is reset after write_timeout; stock waits forever."""
    monkeypatch.setattr(http_server.TCPServer, "write_timeout", 7.0)
    app = Endless(b"x" * 40_000)
    async with connection(app, monkeypatch, stock=stock) as stream:
        client = H2Client(stream, acknowledge=False)
        await client.begin()
        await client.send("GET", "/")
        if stock:
            app.piece = b""  # stock would fill the memory; the test is about the limit
        reset = None
        with trio.move_on_after(100):
            reset = await client.event(h2.events.StreamReset)
        assert (reset is None) is stock
        if not stock:
            assert trio.current_time() == 7
            assert app.sent < 65_535 + 2 * 40_000 + 32_768, "what waits for a client has a bound"
            with trio.fail_after(0.1):
                await app.disconnected.wait()
            await client.send("GET", "/")
            assert await client.event(h2.events.ResponseReceived) is not None


async def test_the_end_of_a_response_has_the_limit(monkeypatch, autojump_clock):
    """A complete response whose last bytes wait for a window is reset after write_timeout."""
    monkeypatch.setattr(http_server.TCPServer, "write_timeout", 7.0)

    async def whole(scope, receive, send):
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"x" * 70_000})

    async with connection(whole, monkeypatch) as stream:
        client = H2Client(stream, acknowledge=False)
        await client.begin()
        await client.send("GET", "/")
        assert (await client.event(h2.events.StreamReset)).stream_id == 1
        assert trio.current_time() == 7


@pytest.mark.parametrize("version", ["1.1", "2"])
async def test_a_slow_reader_is_not_a_stalled_one(version, monkeypatch, autojump_clock):
    """A client that keeps reading slowly gets everything, however long it takes."""
    monkeypatch.setattr(http_server.TCPServer, "write_timeout", 7.0)
    size = 1_000_000

    async def whole(scope, receive, send):
        if scope["type"] == "http":
            length = [(b"content-length", b"%d" % size)]
            await send({"type": "http.response.start", "status": 200, "headers": length})
            await send({"type": "http.response.body", "body": b"x" * size})

    pair = trio.testing.lockstep_stream_pair if version == "1.1" else trio.testing.memory_stream_pair
    async with connection(whole, monkeypatch, pair=pair) as stream:
        received = 0
        if version == "2":
            client = H2Client(stream)
            await client.begin()
            await client.send("GET", "/")
            while (event := await client.event(h2.events.DataReceived, h2.events.StreamEnded)) is not None:
                if isinstance(event, h2.events.StreamEnded):
                    break
                received += len(event.data)
                await trio.sleep(1.5)  # the window's four frames are read at once
        else:
            plain = H1Client(stream, most=40_000)
            await plain.send("GET", "/")
            await plain.event()
            while data := getattr(await plain.event(), "data", b""):
                received += len(data)
                await trio.sleep(5)
        assert received == size
        assert trio.current_time() > 60


@BOTH
async def test_a_frame_announced_too_large(stock, monkeypatch, autojump_clock):
    """A frame announced too large ends the connection at its header; stock first reads up to 16 MiB of it."""
    async with connection(answer, monkeypatch, stock=stock) as stream:
        await stream.send_all(PREFACE + frame(SETTINGS) + frame(DATA, 0, 1, b"", length=2**24 - 1))
        client = H2Client(stream)
        client.http.initiate_connection()
        client.http.clear_outbound_data_buffer()
        ended = None
        with trio.move_on_after(1):
            ended = await client.event(h2.events.ConnectionTerminated)
        assert (ended is None) is stock


@BOTH
async def test_many_requests_over_one_connection(stock, monkeypatch, autojump_clock):
    """An HTTP/2 connection keeps serving; stock closes it after keep_alive_max_requests, during a request."""
    async with connection(answer, monkeypatch, stock=stock, keep_alive_max_requests=2) as stream:
        client = H2Client(stream)
        await client.begin()
        heads = []
        with trio.move_on_after(1), pytest.MonkeyPatch.context():
            for _ in range(6):
                await client.send("GET", "/")
                heads.append(await client.event(h2.events.ResponseReceived))
                await client.event(h2.events.StreamEnded)
        assert (len([head for head in heads if head is not None]) == 6) is not stock


@BOTH
async def test_idle_after_a_reset(stock, monkeypatch, autojump_clock):
    """A connection whose last stream was reset closes like any idle one; stock keeps it forever."""
    async with connection(Endless(b""), monkeypatch, stock=stock, keep_alive_timeout=3) as stream:
        client = H2Client(stream)
        await client.begin()
        number = await client.send("GET", "/")
        await client.event(h2.events.DataReceived)
        client.http.reset_stream(number)
        await client.flush()
        ended = False
        with trio.move_on_after(60):
            ended = await client.event(h2.events.ConnectionTerminated) is None
        assert ended is not stock


UPGRADE = b"GET / HTTP/1.1\r\nhost: x\r\nconnection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\n%b\r\n"
INVALID_SETTINGS = {
    "no settings": b"",
    "two settings": b"http2-settings: AAMAAABk\r\nhttp2-settings: AAMAAABk\r\n",
    "not base64": b"http2-settings: A\r\n",
    "half a setting": b"http2-settings: AAMA\r\n",
    "a bad value": b"http2-settings: AAX_____\r\n",
}


@pytest.mark.parametrize("settings", INVALID_SETTINGS.values(), ids=INVALID_SETTINGS)
async def test_an_invalid_upgrade(settings, monkeypatch, autojump_clock):
    """A request with an invalid HTTP/2 upgrade gets an HTTP/1.1 response."""
    async with connection(answer, monkeypatch) as stream:
        await stream.send_all(UPGRADE % settings)
        assert (await stream.receive_some(1000)).startswith(b"HTTP/1.1 401")


async def test_a_valid_upgrade(monkeypatch, autojump_clock):
    """A request with a valid upgrade gets an HTTP/2 response."""
    async with connection(answer, monkeypatch) as stream:
        await stream.send_all(UPGRADE % b"http2-settings: AAMAAABk\r\n")
        assert (await stream.receive_some(1000)).startswith(b"HTTP/1.1 101")


async def test_a_peer_that_vanishes():
    """The kernel probes silent peers: a lost network sends neither FIN nor RST."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with await trio.open_tcp_stream(*listener.socket.getsockname()) as client_end, listener:
        server_end = await listener.accept()
        tcp_server._enable_keepalive_probes(server_end, 30.0)
        assert server_end.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 30_000
        assert server_end.socket.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        await trio.aclose_forcefully(server_end)
        assert client_end is not None


async def test_a_reset_stream_keeps_the_others(monkeypatch, autojump_clock):
    """A request cancelled before its head is written leaves the other heads readable.

    The headers of all streams share one compression state; stock loses those bytes, and with them the
    connection.
    """
    begin, writable = trio.Event(), trio.Event()

    async def app(scope, receive, send):
        async def watch():
            while (await receive())["type"] != "http.disconnect":
                pass
            nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            await begin.wait()
            path = scope["path"].encode()
            await send({"type": "http.response.start", "status": 200, "headers": [(b"x-path", path)]})
            await send({"type": "http.response.body"})
            nursery.cancel_scope.cancel()

    client_end, server_end = trio.testing.memory_stream_pair()
    forward: Any = server_end.send_stream.send_all_hook

    async def delayed_send():
        await writable.wait()
        await forward()

    async with connection(app, monkeypatch, pair=lambda: (client_end, server_end)) as stream:
        client = H2Client(stream)
        await client.begin()
        streams = [await client.send("GET", f"/{number}") for number in range(6)]
        await trio.testing.wait_all_tasks_blocked()
        server_end.send_stream.send_all_hook = delayed_send
        begin.set()
        await trio.testing.wait_all_tasks_blocked()
        client.http.reset_stream(streams[2])
        await client.flush()
        await trio.testing.wait_all_tasks_blocked()
        writable.set()
        heads = [await client.event(h2.events.ResponseReceived) for _ in range(5)]
        paths = {head.stream_id: dict(head.headers)[b"x-path"] for head in heads}
        assert paths == {stream: b"/%d" % number for number, stream in enumerate(streams) if number != 2}
