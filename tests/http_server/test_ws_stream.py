"""An invalid WebSocket message ends only its own connection, with the right close code."""

import logging
import struct

import h2.events
import pytest
import trio
import trio.testing
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Ping, Pong, TextMessage

from qproxy.http_server.http_stream import MAX_BUFFERED, MAX_PIECES
from qproxy.http_server.ws_stream import MAX_EARLY_BYTES, MAX_PARTS
from tests.helpers import H2Client
from tests.http_server.test_h2_frames import END_HEADERS, GET, HEADERS, PREFACE, SETTINGS, fields
from tests.http_server.test_h2_frames import frame as h2_frame
from tests.http_server.test_patches import connection
from tests.realtime_client import UPGRADE

BOTH = pytest.mark.parametrize("stock", [True, False], ids=["stock", "mended"])


class Echo:
    """An app that echoes each message and notes a disconnect."""

    def __init__(self, reads=True):
        self.reads = reads
        self.disconnected = trio.Event()
        self.received = 0

    async def __call__(self, scope, receive, send):
        assert scope["type"] == "websocket"
        assert (await receive())["type"] == "websocket.connect"
        await send({"type": "websocket.accept"})
        if not self.reads:
            await trio.sleep(60)
        while (message := await receive())["type"] == "websocket.receive":
            self.received += 1
            await send({"type": "websocket.send", "text": message["text"], "bytes": message["bytes"]})
        self.disconnected.set()


class Client:
    """Sends and receives frames over a stream, after the handshake."""

    def __init__(self, stream):
        self.stream = stream
        self.frames = Connection(ConnectionType.CLIENT)
        self.head = b""

    async def begin(self, early=b""):
        await self.stream.send_all(UPGRADE + early)
        while b"\r\n\r\n" not in self.head:
            data = bytes(await self.stream.receive_some(4096))
            if not data:
                return self
            self.head += data
        self.head, _, rest = self.head.partition(b"\r\n\r\n")
        self.frames.receive_data(rest)
        return self

    async def send_event(self, event):
        await self.stream.send_all(self.frames.send(event))

    async def next_event(self):
        """Return the next event, or None at the end."""
        while True:
            for event in self.frames.events():
                return event
            data = bytes(await self.stream.receive_some(65536))
            if not data:
                return None
            self.frames.receive_data(data)


def frame(text):
    return Connection(ConnectionType.CLIENT).send(TextMessage(data=text))


@BOTH
async def test_bytes_before_the_handshake_ends(stock, monkeypatch, autojump_clock, caplog):
    """Early bytes are read once the socket is accepted; stock Hypercorn crashes on a byte (#225)."""
    if stock:
        with pytest.RaisesGroup(pytest.RaisesExc(Exception), flatten_subgroups=True, allow_unwrapped=True):
            async with connection(Echo(), monkeypatch, stock=True, errorlog=None) as stream:
                await Client(stream).begin(b"x")
                await trio.testing.wait_all_tasks_blocked()
    else:
        async with connection(Echo(), monkeypatch) as stream:
            client = await Client(stream).begin(frame("early"))
            assert client.head.startswith(b"HTTP/1.1 101 Switching Protocols\r\n")
            assert (await client.next_event()).data == "early"
        assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


async def test_too_many_bytes_before_the_handshake_ends(monkeypatch, autojump_clock):
    """Early bytes are limited to MAX_EARLY_BYTES."""
    seen = trio.Event()

    async def slow(scope, receive, send):
        seen.set()
        await trio.sleep(5)

    async with connection(slow, monkeypatch) as stream:
        client = await Client(stream).begin(b"x" * (MAX_EARLY_BYTES + 1))
        assert client.head == b""
        assert seen.is_set()


async def test_no_compression(monkeypatch, autojump_clock):
    """A client's offer to deflate is not accepted: inflated data has no bound."""
    async with connection(Echo(), monkeypatch) as stream:
        client = await Client(stream).begin()
        assert b"sec-websocket-extensions" not in client.head.lower()


WRONG = {
    "a frame that is none": (b"\xf7\x80\x00\x00\x00\x00", 1002),
    "an unmasked frame": (b"\x81\x01x", 1002),
    "no UTF-8": (b"\x81\x81\x00\x00\x00\x00\xff", 1007),
    "a message that is too large": (b"\x82\xfe" + struct.pack(">H", 2000) + bytes(4) + bytes(2000), 1009),
    "many pieces of one": (b"".join(bytes([0x02 if not n else 0x00,
        0x80 | 100]) + bytes(104) for n in range(20)), 1009),
}  # fmt: skip


@pytest.mark.parametrize(("data", "code"), WRONG.values(), ids=WRONG)
async def test_an_invalid_message(data, code, monkeypatch, autojump_clock, caplog):
    """An invalid message ends the connection with its close code; the app gets a disconnect, and further
    bytes do no harm."""
    app = Echo()
    async with connection(app, monkeypatch, websocket_max_message_size=1000) as stream:
        client = await Client(stream).begin()
        await stream.send_all(data)
        await stream.send_all(data)
        closed = await client.next_event()
        assert isinstance(closed, CloseConnection)
        assert closed.code == code
        with trio.fail_after(5):
            await app.disconnected.wait()
            while await stream.receive_some(1000):
                pass
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


async def test_bytes_after_the_end(monkeypatch, autojump_clock, caplog):
    """Bytes after a close frame are dropped."""
    async with connection(Echo(), monkeypatch) as stream:
        client = await Client(stream).begin()
        end = client.frames.send(CloseConnection(code=1000))
        await stream.send_all(end + frame("late") + b"garbage")
        assert isinstance(await client.next_event(), CloseConnection)
        assert not await stream.receive_some(1000)
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


async def test_a_close_frame_is_waited_for(monkeypatch, autojump_clock):
    """After its own close frame the server waits for the client's, but not for long."""

    async def app(scope, receive, send):
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.close", "code": 4000, "reason": "enough"})

    for answers in (True, False):
        async with connection(app, monkeypatch) as stream:
            client = await Client(stream).begin()
            closed = await client.next_event()
            assert (closed.code, closed.reason) == (4000, "enough")
            if answers:
                await client.send_event(closed.response())
            start = trio.current_time()
            assert not await stream.receive_some(1000)
            waited = trio.current_time() - start
            assert waited < 0.5 if answers else 0.9 < waited < 1.5


async def test_an_app_that_fails(monkeypatch, autojump_clock, caplog):
    """A failing app closes with 1011, or with 500 before the socket is accepted."""

    async def app(scope, receive, send):
        await receive()
        if accepts:
            await send({"type": "websocket.accept"})
        raise ValueError("odd")

    for accepts in (True, False):
        async with connection(app, monkeypatch) as stream:
            client = await Client(stream).begin()
            assert client.head.startswith(b"HTTP/1.1 101" if accepts else b"HTTP/1.1 500")
            if accepts:
                assert (await client.next_event()).code == 1011


async def test_pings(monkeypatch, autojump_clock):
    """A quiet client gets pings: one that responds stays, one that does not is disconnected."""
    app = Echo()
    async with connection(app, monkeypatch, websocket_ping_interval=10.0) as stream:
        client = await Client(stream).begin()
        for _ in range(5):
            ping = await client.next_event()
            assert isinstance(ping, Ping)
            await client.send_event(Pong(payload=ping.payload))
        assert trio.current_time() == pytest.approx(50, abs=1)
        assert isinstance(await client.next_event(), Ping)
        with trio.fail_after(11):
            await app.disconnected.wait()


async def test_a_slow_app_does_not_time_out_the_client(monkeypatch, autojump_clock):
    """A client stays connected while the app does not read."""
    app = Echo(reads=False)
    async with connection(app, monkeypatch, websocket_ping_interval=10.0) as stream:
        client = await Client(stream).begin()
        for _ in range(6):
            await client.send_event(BytesMessage(data=bytes(60_000)))
        await trio.sleep(59)
        assert not app.disconnected.is_set()
        await trio.sleep(5)
        assert app.received == 6


async def test_buffered_messages_have_a_bound(monkeypatch, autojump_clock):
    """An app that does not read stops the reader at MAX_BUFFERED bytes, however many messages they are."""
    app = Echo(reads=False)
    async with connection(app, monkeypatch, pair=trio.testing.lockstep_stream_pair) as stream:
        client = await Client(stream).begin()
        accepted = 0
        with trio.move_on_after(5):
            while True:
                await client.send_event(BytesMessage(data=bytes(10_000)))
                accepted += 10_000
        assert MAX_BUFFERED <= accepted < MAX_BUFFERED + 100_000


async def test_empty_messages_that_wait_have_a_bound(monkeypatch, autojump_clock):
    """Empty messages use memory too: thousands of them stop the reader."""
    app = Echo(reads=False)
    async with connection(app, monkeypatch, pair=trio.testing.lockstep_stream_pair) as stream:
        await Client(stream).begin()
        accepted = 0
        with trio.move_on_after(5):
            while True:
                await stream.send_all(b"\x81\x80\0\0\0\0" * 100)
                accepted += 100
        assert MAX_PIECES <= accepted < MAX_PIECES + 1000


async def test_a_message_has_a_limit_of_parts(monkeypatch, autojump_clock):
    """A message of empty frames uses no memory; one of more than MAX_PARTS other frames is too large."""
    async with connection(Echo(), monkeypatch) as stream:
        client = await Client(stream).begin()
        await stream.send_all(
            b"\x01\x80\0\0\0\0" + b"\0\x80\0\0\0\0" * (MAX_PARTS + 1) + b"\x80\x81\0\0\0\0x"
        )
        assert (await client.next_event()).data == "x"
        await stream.send_all(b"\x01\x81\0\0\0\0x" + b"\0\x81\0\0\0\0x" * MAX_PARTS)
        assert (await client.next_event()).code == 1009


async def test_a_disconnect_while_the_app_does_not_read(monkeypatch, autojump_clock):
    """`on_disconnect` is called at once, even with a message that the app has not read."""
    disconnected = trio.Event()

    async def app(scope, receive, send):
        scope["extensions"]["qproxy.http_stream"].on_disconnect = disconnected.set
        await send({"type": "websocket.accept"})
        await trio.sleep(60)

    async with connection(app, monkeypatch) as stream:
        client = await Client(stream).begin()
        await client.send_event(TextMessage(data="unheard"))
        await trio.aclose_forcefully(stream)
        with trio.fail_after(1):
            await disconnected.wait()


async def test_an_invalid_handshake(monkeypatch, autojump_clock):
    """A request for another WebSocket version is rejected with a message."""
    async with connection(Echo(), monkeypatch) as stream:
        await stream.send_all(UPGRADE.replace(b"version: 13", b"version: 8"))
        data = b""
        while piece := await stream.receive_some(4096):
            data += piece
        assert data.startswith(b"HTTP/1.1 400")
        assert b"bad_handshake" in data


@pytest.mark.parametrize("name", [b"sec-websocket-extensions", b"sec-websocket-protocol"])
async def test_a_handshake_that_is_not_ascii(name, monkeypatch, autojump_clock, caplog):
    """Headers that are not ASCII are rejected with a message, and log no error."""
    async with connection(Echo(), monkeypatch) as stream:
        await stream.send_all(UPGRADE.replace(b"\r\n\r\n", b"\r\n" + name + b": \xff\r\n\r\n"))
        data = b""
        while piece := await stream.receive_some(4096):
            data += piece
        assert data.startswith(b"HTTP/1.1 400")
        assert b"bad_handshake" in data
    assert not caplog.records


@pytest.mark.parametrize("name", ["sec-websocket-extensions", "sec-websocket-protocol"])
async def test_a_handshake_that_is_not_ascii_over_http2(name, monkeypatch, autojump_clock, caplog):
    """The same holds for a stream of HTTP/2, whose connection continues."""
    connect = [(":method", "CONNECT"), (":protocol", "websocket"), *GET[1:], ("sec-websocket-version", "13")]
    async with connection(Echo(), monkeypatch) as stream:
        block = fields([*connect, (name, b"\xff")])
        await stream.send_all(PREFACE + h2_frame(SETTINGS) + h2_frame(HEADERS, END_HEADERS, 1, block))
        client = H2Client(stream)
        client.http.initiate_connection()
        client.http.send_headers(1, GET, end_stream=True)
        client.http.clear_outbound_data_buffer()
        head = await client.event(h2.events.ResponseReceived)
        assert dict(head.headers)[b":status"] == b"400"
    assert not caplog.records
