"""Each patch of Hypercorn's Trio worker works, and stock Hypercorn still needs it."""

import logging
import sys
from contextlib import asynccontextmanager

import h2.events
import hypercorn.protocol
import hypercorn.protocol.h2
import hypercorn.trio.tcp_server
import pytest
import trio
import trio.testing
from hypercorn.protocol.h2 import H2Protocol as StockH2
from hypercorn.protocol.h11 import H11Protocol as StockH1
from hypercorn.protocol.ws_stream import WSStream as StockSocket
from hypercorn.trio.worker_context import WorkerContext
from quart_trio import QuartTrio

from qproxy import http_server
from tests.helpers import H1Client, H2Client, served

StockBuffer = http_server.StreamBuffer.__mro__[1]
StockServer = hypercorn.trio.tcp_server.TCPServer


@asynccontextmanager
async def connection(app, monkeypatch, *, stock=False, **config):
    """Return a connection served by patched or stock Hypercorn; its failure does not end the test."""
    http_server.patch_hypercorn()
    if stock:
        monkeypatch.setattr(hypercorn.protocol, "H11Protocol", StockH1)
        monkeypatch.setattr(hypercorn.protocol, "H2Protocol", StockH2)
        monkeypatch.setattr(hypercorn.protocol.h2, "StreamBuffer", StockBuffer)
        monkeypatch.setattr(hypercorn.protocol.h11, "WSStream", StockSocket)
        monkeypatch.setattr(hypercorn.protocol.h2, "WSStream", StockSocket)
        monkeypatch.setattr(http_server, "patch_hypercorn", lambda: None)
    async with served(app, StockServer if stock else http_server.TCPServer, **config) as stream:
        yield stream


async def answer(scope, receive, send):
    """Send a response at once, without reading the request."""
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 401, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"no"})


class Endless:
    """An app that sends forever, counts the sent bytes and notes a disconnect."""

    def __init__(self, piece=b"x" * 1000):
        self.piece = piece
        self.sent = 0
        self.disconnected = trio.Event()

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            return

        async def watch():
            while (await receive())["type"] != "http.disconnect":
                pass
            self.disconnected.set()
            nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"x", "more_body": True})
            while self.piece:
                await send({"type": "http.response.body", "body": self.piece, "more_body": True})
                self.sent += len(self.piece)
                await trio.lowlevel.checkpoint()
            await trio.sleep_forever()


async def test_a_failing_connection_is_alone(monkeypatch, caplog):
    """An error in one connection is a log line; stock Hypercorn propagates it to the server, which exits."""

    async def fail(self):
        raise ValueError("odd")

    async def run(server_class):
        async with trio.open_nursery() as nursery:
            async with served(answer, server_class):
                await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()

    monkeypatch.setattr(StockServer, "_read_data", fail)
    caplog.set_level(logging.ERROR)
    with pytest.RaisesGroup(pytest.RaisesExc(ValueError), flatten_subgroups=True):
        await run(StockServer)
    assert not caplog.records
    monkeypatch.setattr(http_server.TCPServer, "_read_data", fail)
    await run(http_server.TCPServer)
    assert [record.getMessage() for record in caplog.records] == ["connection failed: ExceptionGroup"]


@pytest.mark.parametrize("stock", [True, False])
async def test_h2_data_after_an_early_response(stock, monkeypatch, autojump_clock):
    """A body that arrives after its response is dropped; stock Hypercorn raises KeyError."""

    async def upload():
        async with connection(answer, monkeypatch, stock=stock) as stream:
            client = H2Client(stream)
            await client.begin()
            number = await client.send("POST", "/", end=False)
            await client.event(h2.events.StreamEnded)
            client.http.streams[number].state_machine.state = h2.stream.StreamState.OPEN
            client.http.send_data(number, b"late", end_stream=True)
            await client.flush()
            await trio.testing.wait_all_tasks_blocked()
            await client.send("GET", "/")
            return await client.event(h2.events.ResponseReceived)

    if stock:
        with pytest.RaisesGroup(pytest.RaisesExc(KeyError), flatten_subgroups=True, allow_unwrapped=True):
            await upload()
    else:
        assert await upload() is not None


async def test_bytes_after_a_request(monkeypatch, autojump_clock):
    """Bytes after the request do not hide a disconnect (stock misses it when they arrive during the
    response)."""
    app = Endless(b"")
    async with connection(app, monkeypatch) as stream:
        await stream.send_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n" * 2)
        await stream.receive_some(1000)
        await trio.aclose_forcefully(stream)
        with trio.fail_after(5):
            await app.disconnected.wait()


async def test_a_reader_that_stops(monkeypatch, autojump_clock):
    """A client that does not read is dropped after write_timeout; its own close frees it at once."""
    monkeypatch.setattr(http_server.TCPServer, "write_timeout", 7.0)
    for leaves in (False, True):
        app = Endless()
        async with trio.open_nursery() as nursery:
            client_end, server_end = trio.testing.lockstep_stream_pair()
            start = trio.current_time()
            nursery.start_soon(_serve_over, server_end, app)
            await client_end.send_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            if leaves:
                await client_end.receive_some(10)
                await trio.aclose_forcefully(client_end)
            await app.disconnected.wait()
            assert trio.current_time() - start <= (1 if leaves else 8)
            nursery.cancel_scope.cancel()


async def _serve_over(stream, app):
    from hypercorn.config import Config
    from hypercorn.trio.worker_context import WorkerContext
    from hypercorn.utils import wrap_app

    from tests.helpers import _Socket

    stream.socket = _Socket()
    await http_server.TCPServer(wrap_app(app, 2**16, "asgi"), Config(), WorkerContext(None), {}, stream).run()


@pytest.mark.parametrize("stock", [True, False])
async def test_a_truncated_h2_response(stock, monkeypatch, autojump_clock):
    """A truncated HTTP/2 response is reset; stock Hypercorn leaves the client waiting."""

    async def truncate(scope, receive, send):
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"x", "more_body": True})
            raise RuntimeError("oops")

    async with connection(truncate, monkeypatch, stock=stock, errorlog=None) as stream:
        client = H2Client(stream)
        await client.begin()
        await client.send("GET", "/")
        reset = None
        with trio.move_on_after(5):
            reset = await client.event(h2.events.StreamReset)
        assert (reset is None) is stock


@pytest.mark.parametrize("stock", [True, False])
async def test_a_full_window_stops_the_producer(stock, monkeypatch):
    """A full window suspends the app; stock Hypercorn lets it produce forever."""
    app = Endless()
    async with connection(app, monkeypatch, stock=stock) as stream:
        client = H2Client(stream)
        await client.begin()
        await client.send("GET", "/")
        for _ in range(20_000):
            if app.sent > 2_000_000:
                break
            await trio.lowlevel.checkpoint()
        assert (app.sent > 2_000_000) is stock


@pytest.mark.parametrize("fields", [[(":path", "/\xe4")], [(":method", "G\xcbT")]])
async def test_odd_pseudo_headers(fields, monkeypatch, autojump_clock):
    """A path or method that is not ASCII ends its stream, and the next one is served."""
    async with connection(answer, monkeypatch) as stream:
        client = H2Client(stream)
        client.http.config.validate_outbound_headers = False
        client.http.config.normalize_outbound_headers = False
        await client.begin()
        whole = {":method": "GET", ":path": "/", ":scheme": "http", ":authority": "x", **dict(fields)}
        client.http.send_headers(
            1, [(k.encode(), v.encode("latin-1")) for k, v in whole.items()], end_stream=True
        )
        await client.flush()
        assert (await client.event(h2.events.StreamReset)).stream_id == 1
        await client.send("GET", "/")
        assert await client.event(h2.events.ResponseReceived) is not None


@pytest.mark.parametrize("stock", [True, False])
async def test_the_keep_alive_timer(stock, monkeypatch, autojump_clock):
    """An idle connection closes after keep_alive_timeout, although Quart-Trio cancels the task that sets the
    timer."""
    app = QuartTrio(__name__)
    app.add_url_rule("/", "hello", _hello)
    async with connection(app, monkeypatch, stock=stock, keep_alive_timeout=3) as stream:
        client = H1Client(stream)
        await client.send("GET", "/")
        assert (await client.response())[0] == 200
        ended = False
        with trio.move_on_after(60):
            ended = await stream.receive_some(1) == b""
        assert ended is not stock


@pytest.mark.parametrize("stock", [True, False])
async def test_the_keep_alive_timer_of_http2(stock, monkeypatch, autojump_clock):
    """An idle HTTP/2 connection closes after keep_alive_timeout."""
    app = QuartTrio(__name__)
    app.add_url_rule("/", "hello", _hello)
    async with connection(app, monkeypatch, stock=stock, keep_alive_timeout=3) as stream:
        client = H2Client(stream)
        await client.begin()
        await client.send("GET", "/")
        assert await client.event(h2.events.StreamEnded) is not None
        ended = False
        with trio.move_on_after(60):
            ended = await client.event(h2.events.ConnectionTerminated) is None
        assert ended is not stock


@pytest.mark.parametrize("stock", [True, False])
async def test_an_h2_response_that_ends_during_a_shutdown(stock, monkeypatch, autojump_clock):
    """A response that ends during a shutdown has END_STREAM; stock Hypercorn omits it."""
    go = trio.Event()

    async def pieces():
        yield b"a"
        await go.wait()
        yield b"b"

    async def view():
        return pieces()

    app = QuartTrio(__name__)
    app.add_url_rule("/", "view", view)
    context = WorkerContext(None)
    async with connection(app, monkeypatch, stock=stock, context=context) as stream:
        client = H2Client(stream)
        await client.begin()
        await client.send("GET", "/")
        await client.event(h2.events.DataReceived)
        await context.terminated.set()
        go.set()
        ended = None
        with trio.move_on_after(5):
            ended = await client.event(h2.events.StreamEnded)
        assert (ended is None) is stock


async def _hello():
    return "hello"


def test_an_unknown_version_is_not_patched(monkeypatch, caplog):
    """An unknown version of Hypercorn is not patched, and the log names it."""
    monkeypatch.setattr(sys.modules[http_server.serve.__module__], "version", lambda name: "0.19.0")
    monkeypatch.setattr(hypercorn.protocol, "H2Protocol", StockH2)
    http_server.patch_hypercorn()
    assert vars(hypercorn.protocol)["H2Protocol"] is StockH2
    assert "0.19.0" in caplog.text
