"""A read that times out, at any moment, over TCP or TLS, loses no byte."""

import ssl
from functools import partial
from itertools import pairwise

import h11
import pytest
import trio
import trio.testing
import trustme
from hypothesis import given
from hypothesis import strategies as st

from qproxy.transport import ReceiveTimeout, UpstreamTransport
from qproxy.transport.interruptible import InterruptibleStream
from qproxy.wire.errors import UpstreamError
from qproxy.wire.http_request import HTTPRequest
from tests.defaults import transport_limits
from tests.examples import examples

HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
BODY = b"".join(b"data: %d of a stream\n\n" % n for n in range(12))
AUTHORITY = trustme.CA()
CERT = AUTHORITY.issue_cert("host.test")


def chunked():
    http = h11.Connection(h11.SERVER)
    http.receive_data(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
    while not isinstance(http.next_event(), h11.EndOfMessage):
        pass
    http.send(h11.Response(status_code=200, headers=[("transfer-encoding", "chunked")]))
    pieces = [http.send(h11.Data(data=BODY[n : n + 37])) for n in range(0, len(BODY), 37)]
    return b"".join([*pieces, http.send(h11.EndOfMessage())])


WIRE = chunked()


async def serve(stream, cuts, pauses, tls):
    """Send the body cut into pieces with pauses, over TLS if `tls` is set."""
    if tls:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        CERT.configure_cert(context)
        stream = trio.SSLStream(stream, context, server_side=True)
    await stream.receive_some(65536)
    await stream.send_all(HEAD)
    edges = [0, *sorted(cuts), len(WIRE)]
    for number, (start, end) in enumerate(pairwise(edges)):
        await trio.sleep(pauses[number % len(pauses)])
        if start < end:
            await stream.send_all(WIRE[start:end])


@given(
    cuts=st.lists(st.integers(0, len(WIRE)), max_size=12),
    pauses=st.lists(st.sampled_from([0.0, 0.4, 1.0, 1.5, 3.0]), min_size=1, max_size=6),
    tls=st.booleans(),
)
@examples(60)
def test_no_byte_is_lost(cuts, pauses, tls):
    """A reader that times out every second reads the same bytes as one that waits."""
    clock = trio.testing.MockClock(autojump_threshold=0)
    body, timeouts = trio.run(partial(_read_with_timeouts, cuts, pauses, tls), clock=clock)
    assert body == BODY
    assert timeouts > 0 or pauses[0] <= 1


async def _read_with_timeouts(cuts, pauses, tls):
    context = ssl.create_default_context()
    AUTHORITY.configure_trust(context)
    body, timeouts = b"", 0
    async with trio.open_nursery() as nursery:

        async def connect(host, port):
            client_end, server_end = trio.testing.memory_stream_pair()
            nursery.start_soon(serve, server_end, cuts, pauses, tls)
            return client_end

        transport = UpstreamTransport(transport_limits(idle_timeout=20), connect=connect, ssl_context=context)
        url = "https://host.test/" if tls else "http://host.test/"
        async with await transport.send(HTTPRequest("GET", url)) as response:
            while True:
                try:
                    data = await response.receive(trio.current_time() + 1.0)
                except ReceiveTimeout:
                    timeouts += 1
                    continue
                if not data:
                    break
                body += data
    return body, timeouts


@pytest.mark.parametrize("begins", [HEAD, HEAD + b"5\r\nda"], ids=["silent", "in a chunk"])
async def test_read_timeouts_do_not_extend_the_idle_timeout(begins, autojump_clock):
    """Silence ends at idle_timeout despite shorter read timeouts; a byte restarts it."""
    client_end, server_end = trio.testing.memory_stream_pair()

    async def connect(host, port):
        return client_end

    async def reads_until_it_fails(response):
        while True:
            try:
                assert await response.receive(trio.current_time() + 7)
            except ReceiveTimeout:
                continue

    transport = UpstreamTransport(transport_limits(idle_timeout=20), connect=connect)
    await server_end.send_all(begins)
    async with await transport.send(HTTPRequest("GET", "http://host.test/")) as response:
        start = trio.current_time()
        with pytest.raises(UpstreamError, match="upstream_read_timeout"):
            await reads_until_it_fails(response)
        assert trio.current_time() - start == 20


async def test_a_waiting_read_can_be_interrupted(autojump_clock):
    """`interrupt` ends a wait at once, and does not affect the next read."""
    client_end, server_end = trio.testing.memory_stream_pair()
    interruptible = InterruptibleStream(client_end)
    interruptible.interrupt()
    async with trio.open_nursery() as nursery:

        async def read():
            with pytest.raises(ReceiveTimeout):
                await interruptible.receive_some()

        nursery.start_soon(read)
        await trio.testing.wait_all_tasks_blocked()
        interruptible.interrupt()
    await server_end.send_all(b"x")
    assert await interruptible.receive_some() == b"x"
    assert trio.current_time() == 0
