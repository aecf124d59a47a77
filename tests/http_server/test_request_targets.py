"""An ambiguous head has one meaning: the authority of its target, and one length."""

import h11
import pytest

from qproxy.http_server import http_stream
from tests.helpers import H1Client, served, world

CHUNKED = b"transfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n"
BOTH = {
    "length first": b"content-length: 3\r\n" + CHUNKED,
    "chunks first": CHUNKED.replace(b"\r\n\r\n2", b"\r\ncontent-length: 3\r\n\r\n2"),
    "the right length": b"content-length: 2\r\n" + CHUNKED,
}


class App:
    """An app that records its scopes and bodies."""

    def __init__(self):
        self.scopes = []
        self.bodies = []

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            return
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message["body"], message["more_body"]
        assert http_stream.EXTENSION in scope["extensions"]
        self.scopes.append(scope)
        self.bodies.append(body)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})


@pytest.mark.parametrize("framing", BOTH.values(), ids=BOTH)
async def test_a_length_and_chunks(framing):
    """With a length and chunks, the chunks count, the app sees no length, and the connection closes without
    the smuggled request (RFC 9112 6.1)."""
    app = App()
    async with served(app) as stream:
        await stream.send_all(
            b"POST / HTTP/1.1\r\nhost: x\r\n" + framing + b"GET /smuggled HTTP/1.1\r\nhost: x\r\n\r\n"
        )
        client = H1Client(stream)
        client.http.send(h11.Request(method="POST", target="/", headers=[("host", "x")]))
        head = await client.event()
        assert dict(head.headers)[b"connection"] == b"close"
        while not isinstance(await client.event(), h11.EndOfMessage):
            pass
        assert await stream.receive_some(1) == b""
    assert app.bodies == [b"hi"]
    assert b"content-length" not in dict(app.scopes[0]["headers"])


TARGETS = {
    b"http://a.test/v1/models": (b"a.test", b"/v1/models", b""),
    b"http://a.test:81/v1?a=b": (b"a.test:81", b"/v1", b"a=b"),
    b"HTTPS://a.test": (b"a.test", b"/", b""),
    b"http://a.test?a=b": (b"a.test", b"/", b"a=b"),
    b"http://[::1]:80/": (b"[::1]:80", b"/", b""),
    b"/http://b.test/": (b"own.test", b"/http://b.test/", b""),
    b"ftp://a.test/": (b"own.test", b"ftp://a.test/", b""),
}


@pytest.mark.parametrize(("target", "seen"), TARGETS.items(), ids=[target.decode() for target in TARGETS])
@pytest.mark.parametrize("method", [b"GET", b"POST"])
async def test_the_authority_of_a_target(method, target, seen):
    """A target in absolute form replaces the Host header, for every method (RFC 9112 3.2.2)."""
    app = App()
    async with served(app) as stream:
        await stream.send_all(
            method + b" " + target + b" HTTP/1.1\r\nhost: own.test\r\ncontent-length: 0\r\n\r\n"
        )
        assert b" 200 " in await stream.receive_some(1000)
    scope = app.scopes[0]
    assert [value for name, value in scope["headers"] if name == b"host"] == [seen[0]]
    assert (scope["raw_path"], scope["query_string"]) == seen[1:]


@pytest.mark.parametrize("target", [b"http:///v1/models", b"https://?x", b"http://"])
async def test_a_target_without_its_authority(target):
    """A target without its authority is a 400."""
    async with served(App()) as stream:
        await stream.send_all(b"GET " + target + b" HTTP/1.1\r\nhost: localhost\r\n\r\n")
        assert (await stream.receive_some(1000)).startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize(("target", "host", "status"), [
    (b"http://evil.test/v1/models", b"localhost", 403),
    (b"http://localhost/v1/models", b"evil.test", 200),
    (b"/v1/models", b"80", 403),
])  # fmt: skip
async def test_the_rebinding_check_sees_the_authority(target, host, status, monkeypatch):
    """The rebinding check uses the authority that the request goes to."""
    monkeypatch.setattr("tests.helpers._Socket.getsockname", lambda self: ("127.0.0.1", 2))
    async with world() as it, served(it.app) as stream:
        await stream.send_all(b"GET %b HTTP/1.1\r\nhost: %b\r\n\r\n" % (target, host))
        assert b" %d " % status in await stream.receive_some(1000)


@pytest.mark.parametrize("host", [b"a" * 64, b"a..b", b".", b"[", b"\xe9", b"a b", b"%00", b"x:y:z", b""])
@pytest.mark.parametrize("method", [b"GET", b"POST"])
async def test_an_invalid_host_name(host, method, caplog):
    """An invalid Host is served or rejected without an error: no route depends on it."""
    async with world() as it:
        for path in (
            b"/livez",
            b"/v1/models",
            b"/nowhere",
            b"/v1/chat/completions",
            b"/dashboard",
            b"/metrics",
        ):
            async with served(it.app) as stream:
                await stream.send_all(
                    b"%b %b HTTP/1.1\r\nhost: %b\r\ncontent-length: 0\r\n\r\n" % (method, path, host)
                )
                status = int((await stream.receive_some(1000)).split()[1])
                assert 200 <= status < 500
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
