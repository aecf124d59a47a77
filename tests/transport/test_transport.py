"""HTTP to the upstreams: keep-alive, limits, faults, TLS, and a consistent pool after cancellation."""

import ssl
from contextlib import suppress
from functools import partial

import h11
import pytest
import trio
import trio.testing
import trustme

from qproxy.transport import HandshakeRejected, UpstreamTransport, UpstreamWebSocket
from qproxy.wire.errors import RetryHint, UpstreamError
from qproxy.wire.http_request import HTTPRequest, Upload
from tests.defaults import transport_limits

GET = HTTPRequest("GET", "http://host.test/v1/models?secret=1", ((b"authorization", b"Bearer sk-secret"),))
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi"


class Net:
    """Opens memory connections to a server that plays a script of bytes per request."""

    def __init__(self, nursery, *scripts, repeat=None):
        self.nursery = nursery
        self.scripts = list(scripts)
        self.repeat = repeat
        self.connected = 0
        self.closed = 0
        self.requests: list[bytes] = []

    async def connect(self, host, port):
        client_end, server_end = trio.testing.memory_stream_pair()
        self.connected += 1
        self.nursery.start_soon(self.serve, server_end)
        return client_end

    async def serve(self, stream):
        http = h11.Connection(h11.SERVER)
        try:
            while True:
                body = b""
                while not isinstance(event := http.next_event(), h11.EndOfMessage):
                    if event is h11.NEED_DATA:
                        http.receive_data(bytes(await stream.receive_some(65536)))
                    elif isinstance(event, h11.ConnectionClosed):
                        return
                    elif isinstance(event, h11.Data):
                        body += event.data
                self.requests.append(body)
                for step in self.scripts.pop(0) if self.scripts else self.repeat or [OK]:
                    if step is None:
                        return
                    if isinstance(step, float):
                        await trio.sleep(step)
                    else:
                        await stream.send_all(step)
                http = h11.Connection(h11.SERVER)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            self.closed += 1
            await trio.aclose_forcefully(stream)


async def fetch(transport, request=GET):
    async with await transport.send(request) as response:
        return response.status, await response.read(10_000)


def sound(transport):
    statistics = transport.statistics()
    return statistics.open == statistics.idle


BODIES = {
    "content-length": [OK],
    "chunked": [b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nh\r\n", b"1\r\ni\r\n0\r\n\r\n"],
    "until close": [b"HTTP/1.1 200 OK\r\n\r\nh", b"i", None],
    "byte by byte": [OK[i : i + 1] for i in range(len(OK))],
    "interim first": [b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n", OK],
}


@pytest.mark.parametrize("script", BODIES.values(), ids=BODIES.keys())
async def test_bodies(script, nursery):
    """Every framing of a body is read, and the connection is reusable afterwards."""
    transport = UpstreamTransport(transport_limits(), connect=Net(nursery, script).connect)
    assert await fetch(transport) == (200, b"hi")
    assert sound(transport)


class Zeros(Upload):
    """A body that is made while it is sent."""

    def __init__(self, length):
        self.length = length
        self.reads = 0

    async def chunks(self):
        self.reads += 1
        for start in range(0, self.length, 50_000):
            await trio.lowlevel.checkpoint()
            yield b"0" * min(50_000, self.length - start)


@pytest.mark.parametrize("script", BODIES.values(), ids=BODIES.keys())
async def test_uploads(script, nursery):
    """A body that is not in memory is sent in pieces, with its length, before any form of response."""
    net, body = Net(nursery, script), Zeros(300_000)
    transport = UpstreamTransport(transport_limits(), connect=net.connect)
    assert await fetch(transport, HTTPRequest("POST", "http://h.test/x", upload=body)) == (200, b"hi")
    assert net.requests == [b"0" * 300_000]
    assert sound(transport)


async def test_an_upload_is_sent_again_on_a_new_connection(nursery):
    """A pooled connection that turns out to be dead is replaced, and the body is read from its start."""
    net, body = Net(nursery, [OK, None], [OK]), Zeros(10)
    transport = UpstreamTransport(transport_limits(), connect=net.connect)
    await fetch(transport)
    assert await fetch(transport, HTTPRequest("POST", "http://host.test/x", upload=body)) == (200, b"hi")
    assert (net.connected, net.requests[-1]) == (2, b"0" * 10)


async def test_the_sent_head(nursery):
    """The head has qproxy's User-Agent, host and length, and accepts no compression."""
    seen = []

    async def connect(host, port):
        client_end, server_end = trio.testing.memory_stream_pair()

        async def serve():
            seen.append(bytes(await server_end.receive_some(65536)))
            await server_end.send_all(OK)

        nursery.start_soon(serve)
        return client_end

    await fetch(
        UpstreamTransport(transport_limits(), connect=connect),
        HTTPRequest("POST", "http://h.test:81/x", (), b"{}"),
    )
    head = seen[0].lower()
    for field in (
        b"post /x http/1.1",
        b"host: h.test:81",
        b"user-agent: qproxy/",
        b"accept-encoding: identity",
        b"content-length: 2",
    ):
        assert field in head


async def test_keep_alive(nursery, autojump_clock):
    """A connection is reused until it has been idle for too long."""
    net = Net(nursery)
    transport = UpstreamTransport(transport_limits(pool_idle=10), connect=net.connect)
    for _ in range(3):
        await fetch(transport)
    assert net.connected == 1
    await trio.sleep(11)
    await fetch(transport)
    assert net.connected == 2
    await transport.aclose()
    assert transport.statistics().idle == 0


async def test_a_stale_connection_is_replaced_once(nursery):
    """A pooled connection that closes before a byte of the response is replaced, and only once."""
    net = Net(nursery, [OK], [None], [OK])
    transport = UpstreamTransport(transport_limits(), connect=net.connect)
    assert await fetch(transport) == (200, b"hi")
    assert await fetch(transport) == (200, b"hi")
    assert net.connected == 2
    net.scripts = [[None], [None], [OK]]
    with pytest.raises(UpstreamError) as caught:
        await fetch(transport)
    assert caught.value.retry is RetryHint.SOON
    assert net.connected == 3
    assert sound(transport)


async def test_a_response_that_began_is_not_retried(nursery):
    """After one byte of a response the request is not sent again."""
    net = Net(nursery, [OK], [b"HTTP/1.1 2", None])
    transport = UpstreamTransport(transport_limits(), connect=net.connect)
    await fetch(transport)
    with pytest.raises(UpstreamError):
        await fetch(transport)
    assert len(net.requests) == 2


FAULTS = {
    "closed at once": ([None], "upstream_error"),
    "garbage": ([b"SSH-2.0-OpenSSH\r\n\r\n"], "upstream_invalid_response"),
    "header flood": ([b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 20_000], "upstream_invalid_response"),
    "interim without end": ([b"HTTP/1.1 100 Continue\r\n\r\n" * 50], "upstream_invalid_response"),
    "body cut": ([b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhi", None], "upstream_error"),
    "chunk cut": ([b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhi", None], "upstream_error"),
    "too long": ([b"HTTP/1.1 200 OK\r\ncontent-length: 20000\r\n\r\n" + b"x" * 20_000],
        "upstream_invalid_response"),
    "silent": ([1e6], "upstream_timeout"),
    "silent in the body": ([b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhi", 1e6], "upstream_timeout"),
}  # fmt: skip


@pytest.mark.parametrize(("script", "code"), FAULTS.values(), ids=FAULTS.keys())
async def test_faults(script, code, nursery, autojump_clock):
    """Each fault is an UpstreamError in bounded time that names the host and nothing secret."""
    net = Net(nursery, repeat=script)
    transport = UpstreamTransport(transport_limits(), connect=net.connect)
    with pytest.raises(UpstreamError) as caught:
        await fetch(transport)
    assert caught.value.code == code
    assert caught.value.status in (502, 504)
    assert "host.test" in caught.value.message
    assert "secret" not in caught.value.message
    assert trio.current_time() < 500
    assert sound(transport)


async def test_connecting_fails_and_takes_too_long(autojump_clock):
    """A failed or late connection may be retried quickly."""

    async def refuse(host, port):
        raise OSError("connection refused")

    async def wait(host, port):
        await trio.sleep_forever()

    for connect, status in ((refuse, 502), (wait, 504)):
        transport = UpstreamTransport(transport_limits(), connect=connect)
        with pytest.raises(UpstreamError) as caught:
            await transport.send(GET)
        assert (caught.value.status, caught.value.retry) == (status, RetryHint.SOON)
        assert transport.statistics().open == 0


async def test_total_timeout(nursery, autojump_clock):
    """A response that never ends is stopped at the total limit."""
    drip = [b"HTTP/1.1 200 OK\r\ncontent-length: 9000\r\n\r\n", *([b"x", 1.0] * 9000)]
    transport = UpstreamTransport(transport_limits(total_timeout=30), connect=Net(nursery, drip).connect)
    with pytest.raises(UpstreamError) as caught:
        await fetch(transport)
    assert caught.value.status == 504
    assert trio.current_time() <= 31


async def test_the_pool_has_a_limit(nursery, autojump_clock):
    """Above max_connections a request waits for pool_timeout and no longer."""
    transport = UpstreamTransport(transport_limits(max_connections=1), connect=Net(nursery).connect)
    async with await transport.send(GET) as response:
        with pytest.raises(UpstreamError) as caught:
            await transport.send(GET)
        assert (caught.value.status, caught.value.code) == (503, "overloaded")
        await response.read(10)
    assert await fetch(transport) == (200, b"hi")


async def test_an_unfinished_response_closes_its_connection(nursery):
    """Leaving a body unread closes the socket at once."""
    net = Net(nursery, [b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhi", 1e6])
    transport = UpstreamTransport(transport_limits(), connect=net.connect)
    response = await transport.send(GET)
    assert await response.receive() == b"hi"
    await response.aclose()
    await response.aclose()
    assert transport.statistics().open == 0


async def test_all_received_chunks_are_one_piece(nursery):
    """Chunks that arrived together are one piece."""
    body = b"".join(b"1\r\n%d\r\n" % (n % 10) for n in range(50)) + b"0\r\n\r\n"
    net = Net(nursery, [b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + body])
    async with await UpstreamTransport(transport_limits(), connect=net.connect).send(GET) as response:
        assert len(await response.receive()) == 50
        assert await response.receive() == b""


async def test_header_injection(nursery):
    """A line end in a header is not sent."""
    request = HTTPRequest("GET", GET.url, ((b"x", b"a\r\nb: c"),))
    with pytest.raises(UpstreamError):
        await UpstreamTransport(transport_limits(), connect=Net(nursery).connect).send(request)


async def test_an_early_response_to_a_large_request(nursery):
    """A 413 that arrives while the body is still being sent is read."""
    async with trio.open_nursery() as inner:

        async def serve(stream):
            await stream.receive_some(1000)
            await stream.send_all(
                b"HTTP/1.1 413 Too Large\r\ncontent-length: 2\r\nconnection: close\r\n\r\nno"
            )
            await stream.aclose()

        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listeners[0].socket.getsockname()[1]
        inner.start_soon(partial(trio.serve_listeners, serve, listeners))
        request = HTTPRequest("POST", f"http://127.0.0.1:{port}/", (), b"x" * 1_000_000)
        try:
            async with await UpstreamTransport(transport_limits()).send(request) as response:
                assert response.status == 413
        except UpstreamError as error:  # the kernel may drop the response with its reset
            assert "127.0.0.1" in error.message  # noqa: PT017
        inner.cancel_scope.cancel()


async def test_cancellation_at_any_moment_keeps_the_pool_consistent(nursery, autojump_clock):
    """After thousands of requests cancelled at all stages no slot is held: ten of ten work."""
    drip = [0.003, b"HTTP/1.1 200 OK\r\n", 0.003, b"content-length: 2\r\n\r\n", 0.003, b"h", 0.003, b"i"]
    net = Net(nursery, repeat=drip)

    async def connect(host, port):
        await trio.sleep(0.002)
        return await net.connect(host, port)

    transport = UpstreamTransport(transport_limits(max_connections=10, pool_timeout=100), connect=connect)

    async def fetch_briefly(number):
        with trio.move_on_after(number % 97 * 0.0007):
            await fetch(transport)

    async with trio.open_nursery() as inner:
        for number in range(3000):
            inner.start_soon(fetch_briefly, number)
    assert sound(transport)
    assert [await fetch(transport) for _ in range(10)] == [(200, b"hi")] * 10
    assert sound(transport)


async def test_tls(nursery):
    """Certificates are verified: the right one works, a wrong host and an unknown authority do not."""
    authority = trustme.CA()
    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(server_context)
    trusting, distrusting = ssl.create_default_context(), ssl.create_default_context()
    authority.configure_trust(trusting)

    async def serve(stream):
        try:
            await stream.receive_some(65536)
            await stream.send_all(OK)
        except trio.BrokenResourceError:
            return  # the client rejected the certificate

    listeners = await trio.open_ssl_over_tcp_listeners(0, server_context, host="127.0.0.1")
    port = listeners[0].transport_listener.socket.getsockname()[1]  # type: ignore[attr-defined]
    nursery.start_soon(partial(trio.serve_listeners, serve, listeners))
    for context, host, good in (
        (trusting, "localhost", True),
        (trusting, "127.0.0.1", False),
        (distrusting, "localhost", False),
    ):
        transport = UpstreamTransport(transport_limits(), ssl_context=context)
        request = HTTPRequest("GET", f"https://{host}:{port}/")
        if good:
            assert await fetch(transport, request) == (200, b"hi")
        else:
            with pytest.raises(UpstreamError, match="TLS"):
                await fetch(transport, request)
        assert sound(transport)
        await transport.aclose()
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize("url", ["ftp://x/", "nonsense", "http:///x"])
async def test_invalid_urls(url):
    """An invalid base URL is an error that names it."""
    with pytest.raises(UpstreamError, match="base URL"):
        await UpstreamTransport(transport_limits()).send(HTTPRequest("GET", url))


@pytest.mark.parametrize(
    "body",
    [b"content-length: 9\r\ntransfer-encoding: chunked", b"transfer-encoding: chunked\r\ncontent-length: 2"],
)
async def test_a_length_and_chunks(body, nursery):
    """A response with both is read by its chunks, and its connection is not reused (RFC 9112 6.3)."""
    net = Net(nursery, [b"HTTP/1.1 200 OK\r\n" + body + b"\r\n\r\n2\r\nhi\r\n0\r\n\r\n"])
    transport = UpstreamTransport(transport_limits(), connect=net.connect)
    for _ in range(2):
        assert await fetch(transport) == (200, b"hi")
    assert net.connected == 2


UPGRADED = b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
OPENINGS = {
    "a field of blanks": UPGRADED + b"a:" + b" " * 15_000 + b"\0\r\n\r\n",
    "a head without an end": UPGRADED + b"a: b\r\n" * 20_000,
    "an extension that is no text": UPGRADED + b"sec-websocket-extensions: \xff\r\n\r\n",
    "a refusal with a chunk's size of blanks": b"HTTP/1.1 400 No\r\ntransfer-encoding: chunked\r\n\r\n1;" + b" " * 15_000 + b"\nx\r\n",
    "a refusal with trailers of blanks": b"HTTP/1.1 400 No\r\ntransfer-encoding: chunked\r\n\r\n0\r\na:" + b" " * 15_000 + b"\0\r\n\r\n",
    "no HTTP": b"\0\0\0\r\n\r\n",
}  # fmt: skip


@pytest.mark.parametrize("opening", OPENINGS.values(), ids=OPENINGS)
@pytest.mark.parametrize("size", [65_536, 1000])
async def test_a_websockets_opening_has_the_bounds_of_heads(opening, size, nursery, autojump_clock):
    """An opening beyond the bounds, or not ASCII, is an upstream error; h11 in wsproto gets no long lines."""
    seen: list[bytes] = []

    async def connect(host, port):
        client_end, server_end = trio.testing.memory_stream_pair()

        async def serve():
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                await server_end.receive_some(65536)
                for begin in range(0, len(opening), size):
                    await server_end.send_all(opening[begin : begin + size])
                seen.append(bytes(await server_end.receive_some(10)))

        nursery.start_soon(serve)
        return client_end

    websocket = UpstreamWebSocket("ws://h.test/", (), ping_interval=20, max_message_bytes=1000)
    with pytest.raises((UpstreamError, HandshakeRejected)):
        await websocket.run(
            UpstreamTransport(transport_limits(), connect=connect), task_status=trio.TASK_STATUS_IGNORED
        )
