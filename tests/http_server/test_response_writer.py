"""FastWriter and h11 produce the same exchanges, and alternate on one connection."""

import logging

import h11
import pytest
import trio
import trio.testing

from qproxy.http_server import h11 as h11_protocol
from qproxy.http_server import http_stream
from tests.helpers import H1Client, served

WAYS = {"by hand": [], "by h11": [("connection", "keep-alive, te")]}
"""Headers that select the writer of a request."""
BY_H11 = WAYS["by h11"]


@pytest.fixture(params=list(WAYS.values()), ids=list(WAYS))
def way(request):
    return request.param


class App:
    """An app that reads the request and sends its configured messages."""

    def __init__(self, *messages, status=200, headers=(), reads=True):
        self.head = {"type": "http.response.start", "status": status, "headers": list(headers)}
        self.messages = [
            {"type": "http.response.body", "body": piece, "more_body": number < len(messages) - 1}
            for number, piece in enumerate(messages)
        ]
        self.reads = reads
        self.requests = []
        self.ways = []

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            return
        self.ways.append(type(scope["extensions"][http_stream.EXTENSION].writer).__name__)
        body, more = b"", self.reads
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        self.requests.append((scope["method"], scope["raw_path"], scope["query_string"], body))
        for message in (self.head, *self.messages):
            await send(message)


async def read_all(stream):
    data = b""
    while piece := await stream.receive_some(65536):
        data += bytes(piece)
    return data


def heads_of(data):
    """Return the status lines in `data`."""
    return [line for line in data.split(b"\r\n") if line.startswith(b"HTTP/1.1 ")]


async def test_the_writer_is_chosen(way):
    """FastWriter serves a plain request and h11 any other one; the app sees the same."""
    app = App(b"hi")
    async with served(app) as stream:
        client = H1Client(stream)
        for _ in range(2):
            await client.send("POST", "/a%20b?c=d", b"x" * 1000, way)
            assert await client.response() == (200, b"hi")
            client.http.start_next_cycle()
    assert app.ways == ["H11Writer" if way else "FastWriter"] * 2
    assert app.requests == [("POST", b"/a%20b", b"c=d", b"x" * 1000)] * 2


async def test_writers_alternate():
    """One connection carries both writers, in any order."""
    app = App(b"a", b"b")
    async with served(app) as stream:
        client = H1Client(stream)
        for fields in ([], BY_H11, BY_H11, [], [], BY_H11):
            await client.send("POST", "/", b"x", fields)
            assert await client.response() == (200, b"ab")
            client.http.start_next_cycle()
    assert app.ways == ["FastWriter", "H11Writer", "H11Writer", "FastWriter", "FastWriter", "H11Writer"]


ANSWERS = {
    "with a length": App(b"hello", headers=[(b"Content-Length", b"5"), (b"X-A", b" b ")]),
    "with a length, in pieces": App(b"he", b"l", b"lo", headers=[(b"content-length", b"5")]),
    "in chunks": App(b"he", b"l", b"lo"),
    "in chunks, ending with nothing": App(b"hello", b""),
    "nothing": App(b""),
    "a length of nothing": App(b"", headers=[(b"content-length", b"0")]),
    "no content": App(b"", status=204),
    "not modified": App(b"", status=304, headers=[(b"content-length", b"5")]),
    "an app that says how it goes": App(b"hi", headers=[(b"transfer-encoding", b"chunked")]),
    "the last": App(b"hi", headers=[(b"connection", b"close"), (b"content-length", b"2")]),
}


@pytest.mark.parametrize("app", ANSWERS.values(), ids=ANSWERS)
async def test_responses_are_the_same(app, monkeypatch):
    """Both writers send the same bytes, except for the case of the names that h11 writes."""
    monkeypatch.setattr(h11_protocol, "_server_headers", lambda config, second: [(b"date", b"today")])
    sent = []
    for fields in WAYS.values():
        async with served(app) as stream:
            await H1Client(stream).send("POST", "/", b"", fields)
            await trio.testing.wait_all_tasks_blocked()
            sent.append((await stream.receive_some(65536)).lower())
    assert sent[0] == sent[1]


WRONG = {
    "too long": App(b"hello!", headers=[(b"content-length", b"5")]),
    "too short": App(b"hell", headers=[(b"content-length", b"5")]),
    "a line end in a field": App(b"hi", headers=[(b"x-a", b"b\r\nx-c: d")]),
    "two lengths": App(b"hi", headers=[(b"content-length", b"2"), (b"content-length", b"3")]),
}


@pytest.mark.parametrize("app", WRONG.values(), ids=WRONG)
async def test_invalid_responses_close_the_connection(app, way, caplog):
    """An invalid response is the app's fault: it is logged, and the connection closes."""
    async with served(app) as stream:
        await H1Client(stream).send("POST", "/", b"", way)
        data = await read_all(stream)
    assert b"x-c" not in data
    assert b"hello!" not in data
    assert any(record.levelno >= logging.ERROR for record in caplog.records)


async def test_a_body_in_pieces(way):
    """A request cut anywhere after its head reaches the app complete."""
    app = App(b"hi")
    body = b"".join(b"%d " % number for number in range(50_000))  # more than the app's buffer
    async with served(app) as stream:
        client = H1Client(stream)
        fields = [("host", "x"), ("content-length", str(len(body))), *way]
        await stream.send_all(client.http.send(h11.Request(method="POST", target="/", headers=fields)))
        data = client.http.send(h11.Data(data=body)) + client.http.send(h11.EndOfMessage())
        for start in range(0, len(data), 60_000):
            await stream.send_all(data[start : start + 60_000])
        assert await client.response() == (200, b"hi")
    assert app.requests[0][3] == body


async def test_a_head_in_pieces():
    """A head that arrives in several reads is parsed by h11; the next one may use FastWriter."""
    app = App(b"hi")
    async with served(app) as stream:
        client = H1Client(stream)
        head = client.http.send(
            h11.Request(method="POST", target="/", headers=[("host", "x"), ("content-length", "0")])
        )
        client.http.send(h11.EndOfMessage())
        for place in range(len(head)):
            await stream.send_all(head[place : place + 1])
            await trio.testing.wait_all_tasks_blocked()
        assert await client.response() == (200, b"hi")
        client.http.start_next_cycle()
        await client.send("POST", "/", b"")
        assert await client.response() == (200, b"hi")
    assert app.ways == ["H11Writer", "FastWriter"]


ONE = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\n\r\na"
LAST = ONE.replace(b"host: x", b"host: x\r\nconnection: close")


@pytest.mark.parametrize("cut", [0, 1, 30, len(ONE) - 1])
async def test_requests_ahead(cut):
    """Pipelined requests get their responses in order."""
    app = App(b"hi")
    async with served(app) as stream:
        data = ONE * 3 + LAST
        await stream.send_all(data[: len(ONE) + cut])
        await trio.testing.wait_all_tasks_blocked()
        await stream.send_all(data[len(ONE) + cut :])
        assert len(heads_of(await read_all(stream))) == 4
    assert len(app.requests) == 4


async def test_an_early_response_reads_no_further(way):
    """The rest of a request after an early response is not parsed as another request."""
    app = App(b"no", status=413, headers=[(b"content-length", b"2")], reads=False)
    async with served(app) as stream:
        client = H1Client(stream)
        fields = [("host", "x"), ("content-length", "1000"), *way]
        await stream.send_all(client.http.send(h11.Request(method="POST", target="/", headers=fields)))
        await trio.testing.wait_all_tasks_blocked()
        data = bytes(await stream.receive_some(65536))
        try:
            await stream.send_all(ONE * 5)
            data += await read_all(stream)
        except trio.BrokenResourceError:
            pass
    assert heads_of(data) == [b"HTTP/1.1 413 Content Too Large"]
    assert len(app.ways) == 1


async def test_the_end_in_the_middle_of_a_request(way):
    """A truncated request gets a 400 if no response has started, and its app gets a disconnect."""
    left = trio.Event()

    async def app(scope, receive, send):
        while scope["type"] == "http" and (await receive())["type"] != "http.disconnect":
            pass
        left.set()

    async with served(app) as stream:
        client = H1Client(stream)
        fields = [("host", "x"), ("content-length", "1000"), *way]
        await stream.send_all(
            client.http.send(h11.Request(method="POST", target="/", headers=fields)) + b"abc"
        )
        await trio.testing.wait_all_tasks_blocked()
        await stream.send_eof()
        data = await read_all(stream)
        await left.wait()
    assert heads_of(data) == [b"HTTP/1.1 400 Bad Request"]
    assert b"Invalid HTTP/1.1 request." in data


async def test_a_flood_ahead(way, autojump_clock):
    """A client that pipelines more than the buffer holds is disconnected."""

    async def app(scope, receive, send):
        await trio.sleep_forever()

    async with served(app) as stream:
        await H1Client(stream).send("POST", "/", b"", way)
        sent = 0
        try:
            while sent < 10_000_000:
                await stream.send_all(b"x" * 10_000)
                sent += 10_000
        except trio.BrokenResourceError:
            pass
    assert sent < 1_000_000


async def test_the_last_request_of_a_connection(way):
    """The last request allowed on a connection gets `connection: close`."""
    app = App(b"hi")
    async with served(app, keep_alive_max_requests=2) as stream:
        client = H1Client(stream)
        for _ in range(2):
            await client.send("POST", "/", b"", way)
            assert await client.response() == (200, b"hi")
            if client.http.our_state is h11.DONE:
                client.http.start_next_cycle()
        assert client.http.our_state is h11.MUST_CLOSE
        assert await read_all(stream) == b""
