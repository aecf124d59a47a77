"""A client can finish its request after an early response and read that response, within limits."""

import h2.errors
import h2.events
import h11
import pytest
import trio
import trio.testing
from hypercorn.trio.worker_context import WorkerContext

from qproxy.http_server import TCPServer
from tests.helpers import H1Client, h2c, served

HEAD = b"POST / HTTP/1.1\r\nhost: x\r\n%bcontent-length: %d\r\n\r\n"
CHUNKED = b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
WAYS = {
    "a length": lambda size: HEAD % (b"", size) + b"a" * size,
    "a length, by h11": lambda size: HEAD % (b"connection: te\r\n", size) + b"a" * size,
    "chunks": lambda size: CHUNKED + b"%x\r\n%b\r\n0\r\n\r\n" % (size, b"a" * size),
    "no HTTP": lambda size: b"\x16\x03\x01\r\n\r\n" + b"a" * size,
    "a head that is too large": lambda size: b"GET / HTTP/1.1\r\nhost: x\r\nx: " + b"a" * size,
}
SIZE = 1024 * 1024
PIECE = 64 * 1024


async def refuse(scope, receive, send):
    """Send a response without reading the body."""
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 401, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"no"})


async def send(stream, data):
    """Send data piece by piece, each after the server has read the one before."""
    for start in range(0, len(data), PIECE):
        await stream.send_all(data[start : start + PIECE])
        await trio.testing.wait_all_tasks_blocked()


def response_head():
    """Return an HTTP/1.1 client that has sent its request and reads."""
    http = h11.Connection(h11.CLIENT)
    http.send(h11.Request(method="GET", target="/", headers=[("host", "x")]))
    http.send(h11.EndOfMessage())
    return http


@pytest.fixture
def limits(monkeypatch):
    """Return a function that sets the limits of lingering."""

    def set_limits(**values):
        for name, value in values.items():
            monkeypatch.setattr(TCPServer, name, value)

    return set_limits


@pytest.mark.parametrize("request_bytes", WAYS.values(), ids=WAYS)
async def test_a_client_that_sends_everything_first(request_bytes, autojump_clock):
    """A client that reads only after it has sent its whole body (http.client) gets the response."""
    async with served(refuse) as stream:
        await send(stream, request_bytes(SIZE))
        client = H1Client(stream, response_head())
        head = await client.event()
        assert head.status_code in (400, 401, 431)
        assert (b"connection", b"close") in head.headers.raw_items()
        while not isinstance(await client.event(), h11.EndOfMessage):
            pass
        assert await stream.receive_some() == b""
        assert trio.current_time() < 1


REFUSALS = {
    "more than linger_bytes": {"max_linger_bytes": SIZE // 2},
    "no lingering": {"max_linger_bytes": 0},
    "connections run short": {"max_connections": 1},
}


@pytest.mark.parametrize("values", REFUSALS.values(), ids=REFUSALS)
async def test_a_body_beyond_the_limit_closes_the_connection(values, limits, autojump_clock):
    """Beyond linger_bytes, and when connections run short, the connection is closed."""
    limits(**values)
    async with served(refuse) as stream:
        with pytest.raises(trio.BrokenResourceError):
            await send(stream, WAYS["a length"](SIZE))


@pytest.mark.parametrize("way", ["a length", "chunks"])
async def test_a_client_that_does_not_send_the_rest(way, limits, autojump_clock):
    """The sending side is closed with the response, the connection at linger_timeout."""
    limits(linger_seconds=7.0)
    async with served(refuse, keep_alive_timeout=60) as stream:
        await stream.send_all(WAYS[way](SIZE)[:1000])
        data = b""
        while piece := await stream.receive_some():
            data += piece
        assert data.startswith(b"HTTP/1.1 401 Unauthorized")
        assert trio.current_time() == 0
        await trio.sleep(6.9)
        await stream.send_all(b"a")
        await trio.sleep(0.2)
        with pytest.raises(trio.BrokenResourceError):
            await stream.send_all(b"a")


async def test_a_shutdown_does_not_wait(autojump_clock):
    """A lingering connection is idle: a shutdown closes it at once."""
    context = WorkerContext(None)
    async with served(refuse, context=context) as stream:
        await stream.send_all(WAYS["a length"](SIZE)[:1000])
        while await stream.receive_some():
            pass
        await context.terminated.set()
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.BrokenResourceError):
            await stream.send_all(b"a")


async def test_http2(limits, autojump_clock):
    """The rest of a stream is discarded up to linger_bytes, then the stream is reset without an error."""
    limits(max_linger_bytes=40_000)
    async with h2c(refuse) as client:
        stream_id = await client.send("POST", "/", end=False)
        assert await client.event(h2.events.StreamEnded)
        for _ in range(3):
            client.http.send_data(stream_id, b"a" * 16_000)
            await client.flush()
            await trio.testing.wait_all_tasks_blocked()
        reset = await client.event(h2.events.StreamReset)
        assert (reset.stream_id, reset.error_code) == (stream_id, h2.errors.ErrorCodes.NO_ERROR)
        await client.send("GET", "/")
        assert await client.event(h2.events.StreamEnded)
