"""Malformed requests, as real HTTP/1.1 bytes, get a clear response in OpenAI's shape and never a 500."""

import gzip
import json
import logging

import h11
import pytest
import trio

from qproxy.server.app import normalize_path
from qproxy.wire.http1 import reason_phrase
from tests.helpers import HELLO, H1Client, served, world

BODY = json.dumps(HELLO).encode()
FIELDS = b"host: localhost\r\ncontent-type: application/json\r\n"


def post(body=BODY, more=b"", path=b"/v1/chat/completions", length=None):
    size = len(body) if length is None else length
    return b"POST %b HTTP/1.1\r\n%b%bcontent-length: %d\r\n\r\n%b" % (path, FIELDS, more, size, body)


def chunked(*pieces):
    data = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in (*pieces, b""))
    return b"POST /v1/chat/completions HTTP/1.1\r\n" + FIELDS + b"transfer-encoding: chunked\r\n\r\n" + data


def get(path=b"/v1/models", more=b"host: localhost\r\n", method=b"GET"):
    return b"%b %b HTTP/1.1\r\n%b\r\n" % (method, path, more)


def body_with(more):
    """Return the usual body with one more member."""
    return BODY[:-1] + b"," + more + b"}"


REQUESTS = {
    # Framing of a body
    "chunked": (chunked(BODY[:9], BODY[9:]), 200, None),
    "a chunk that is none": (chunked()[:-5] + b"zz\r\n", 400, None),
    "more than content-length says": (post(length=10), 400, None),
    "a length below nothing": (post(length=-5), 400, None),
    "two lengths": (post(more=b"content-length: 5\r\n"), 400, None),
    "a length beyond the limit": (post(b"", length=10**12), 413, "request_too_large"),
    "a length of 4,300 digits": (post(b"", length=10**4299), 400, None),
    "a body beyond the limit": (post(b" " * 20_000), 413, "request_too_large"),
    "chunks beyond the limit": (chunked(*[b" " * 1000] * 20), 413, "request_too_large"),
    "another transfer coding": (post(more=b"transfer-encoding: gzip, chunked\r\n"), 501, None),
    "expect": (post(more=b"expect: 100-continue\r\n"), 200, None),
    "compressed": (post(gzip.compress(BODY), b"content-encoding: gzip\r\n"), 200, None),
    "compressed in part": (post(gzip.compress(BODY)[:-9], b"content-encoding: gzip\r\n"), 400, "invalid_content_encoding"),
    "compressed in another way": (post(more=b"content-encoding: br\r\n"), 415, "unsupported_content_encoding"),
    "compressed as itself": (post(more=b"content-encoding: identity\r\n"), 200, None),
    "another type": (post(more=b"").replace(b"application/json", b"text/plain"), 415, "unsupported_media_type"),
    "a type that is none": (post().replace(b"application/json", b";;;=\xff"), 200, None),
    "a type with a charset": (post().replace(b"application/json", b"application/json; charset=utf-8"), 200, None),
    # JSON values
    "nothing": (post(b""), 400, None),
    "null": (post(b"null"), 400, None),
    "an array": (post(b"[]"), 400, None),
    "NaN": (post(body_with(b'"temperature": NaN')), 400, None),
    "beyond a double": (post(body_with(b'"metadata": {"a": -1e999}')), 400, None),
    "a number of thousands of digits": (post(body_with(b'"seed": ' + b"9" * 5000)), 400, None),
    "a number beyond 64 bits": (post(body_with(b'"max_tokens": ' + b"9" * 400)), 400, "invalid_value"),
    "a float beyond what is": (post(body_with(b'"temperature": ' + b"9" * 400)), 400, "invalid_value"),
    "a name twice": (post(body_with(b'"model": "qwen-max"')), 200, None),
    "half a character": (post(BODY.replace(b"Hello", b"\\ud800")), 200, None),
    "half a character in a name": (post(body_with(b'"\\ud800": 1')), 200, None),
    "half a character as the model": (post(BODY.replace(b"qwen", b"\\ud800")), 400, "invalid_value"),
    "what is not UTF-8": (post(b'{"model": "\xff"}'), 400, None),
    "UTF-16": (post(BODY.decode().encode("utf-16")), 400, None),
    "a byte-order mark": (post(b"\xef\xbb\xbf" + BODY), 200, None),
    "depth without an end": (post(b"[" * 100), 400, None),
    "depth with an end": (post(b"[" * 4500 + b"]" * 4500), 400, "invalid_value"),
    "depth of objects": (post(b'{"a":' * 1400 + b"1" + b"}" * 1400), 400, "invalid_value"),
    "a little too deep": (post(body_with(b'"metadata": ' + b"[" * 900 + b"]" * 900)), 400, "invalid_value"),
    # Methods and paths
    "HEAD": (get(b"/livez", method=b"HEAD"), 200, None),
    "HEAD where there is only POST": (get(b"/v1/completions", method=b"HEAD"), 405, None),
    "OPTIONS": (get(b"/v1/chat/completions", method=b"OPTIONS"), 204, None),
    "OPTIONS of everything": (get(b"*", method=b"OPTIONS"), 204, None),
    "TRACE": (get(method=b"TRACE"), 405, "method_not_allowed"),
    "a method of one's own": (get(method=b"FROB"), 405, "method_not_allowed"),
    "CONNECT": (get(b"localhost:80", method=b"CONNECT"), 404, "unknown_url"),
    "a slash behind": (post(path=b"/v1/chat/completions/"), 200, None),
    "two slashes before": (post(path=b"//v1/chat/completions"), 200, None),
    "two slashes within": (post(path=b"/v1//chat/completions"), 200, None),
    "a slash in percent": (post(path=b"/v1/chat%2fcompletions"), 200, None),
    "a letter in percent": (post(path=b"/v1/%63hat/completions"), 200, None),
    "percent that is none": (get(b"/v1/%zz%ff"), 404, "unknown_url"),
    "a path that climbs": (get(b"/v1/../../etc/passwd"), 404, "unknown_url"),
    "a whole URL": (get(b"http://localhost/v1/models"), 200, None),
    "a whole URL without a path": (get(b"http://localhost"), 200, None),
    "no path": (get(b"?x=y"), 200, None),
    "a star": (get(b"*"), 404, "unknown_url"),
    "an odd query": (get(b"/v1/models?%ff=%zz&&&="), 200, None),
    "a model in percent": (get(b"/v1/models/org%2Fmodel"), 404, "model_not_found"),
    "a model of nothing visible": (get(b"/v1/models/a%00b%ed%a0%80"), 404, "model_not_found"),
    # Heads
    "no Host": (get(more=b""), 400, None),
    "two Hosts": (get(more=b"host: localhost\r\nhost: other\r\n"), 400, None),
    "a Host that is none": (get(more=b"host: \xff\xfe[::\r\n"), 200, None),
    "a key that is no text": (get(more=b"host: x\r\nauthorization: Bearer \xff\xfe\r\n"), 200, None),
    "an origin that is no text": (post(more=b"origin: \xff\r\n"), 200, None),
    "a NUL": (get(more=b"host: x\r\nx: a\x00b\r\n"), 400, None),
    "a thousand fields": (get(more=b"host: x\r\n" + b"x: y\r\n" * 1000), 200, None),
    "WebSocket": (get(b"/v1/responses", b"host: x\r\nconnection: Upgrade\r\nupgrade: websocket\r\n"), 426, "websocket_not_supported"),
    "HTTP/1.0": (b"GET /livez HTTP/1.0\r\n\r\n", 200, None),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400, None),
}  # fmt: skip


@pytest.mark.parametrize(("raw", "status", "code"), REQUESTS.values(), ids=REQUESTS)
async def test_an_odd_request(raw, status, code, caplog, autojump_clock):
    """A malformed request gets its status and code, and logs no error."""
    async with world(max_body_bytes=10_000) as it, served(it.app) as stream:
        await stream.send_all(raw)
        client = H1Client(stream)
        method = raw.split(b" ")[0].decode("latin-1")
        known = method if method in ("GET", "HEAD", "POST", "OPTIONS", "TRACE") else "GET"
        client.http.send(h11.Request(method=known, target="/", headers=[("host", "x")]))
        head = await client.event()
        while isinstance(head, h11.InformationalResponse):
            head = await client.event()
        assert (head.status_code, head.reason) == (status, reason_phrase(status))
        assert status != 204 or b"content-length" not in dict(head.headers)
        body = b""
        while isinstance(event := await client.event(), h11.Data):
            body += event.data
        if status >= 400 and method != "HEAD":
            error = json.loads(body)["error"]
            assert set(error) == {"message", "type", "param", "code"}
            assert error["code"] == code
            assert len(body) < 1000
        assert not [r for r in caplog.records if r.levelno >= logging.ERROR]


async def test_a_long_path_is_not_repeated(caplog):
    """A client's long path is shortened in the response and in the log."""
    caplog.set_level(logging.INFO)
    async with world() as it:
        status, body = await it.get("/" + "y" * 30_000)
        assert (status, len(body["error"]["message"]) < 300) == (404, True)
        assert len(repr([record.__dict__ for record in caplog.records])) < 3000


async def test_expect_gets_100_before_the_body(autojump_clock):
    """A client that expects 100 gets it before it sends the body."""
    async with world() as it, served(it.app) as stream:
        raw = post(more=b"expect: 100-continue\r\n")
        await stream.send_all(raw[: -len(BODY)])
        assert (await stream.receive_some(1000)).startswith(b"HTTP/1.1 100")
        await stream.send_all(BODY)
        assert b"HTTP/1.1 200" in await stream.receive_some(1000)
        assert trio.current_time() < 1


@pytest.mark.parametrize(
    ("more", "length", "status"),
    [
        (b"authorization: Bearer wrong\r\n", 1000, 401),
        (b"authorization: Bearer right-key\r\n", 10**10, 413),
        (b"authorization: Bearer right-key\r\ncontent-encoding: br\r\n", 1000, 415),
    ],
)
async def test_a_head_is_rejected_without_100(autojump_clock, more, length, status):
    """A client that waits for 100 learns from the final status alone that its body is not wanted."""
    async with world(api_keys=["right-key"]) as it, served(it.app) as stream:
        await stream.send_all(post(b"", b"expect: 100-continue\r\n" + more, length=length))
        assert (await stream.receive_some(1000)).startswith(b"HTTP/1.1 %d" % status)


@pytest.mark.parametrize(
    ("target", "path"),
    [("/a", "/a"), ("//a///b/", "/a/b/"), ("", "/"), ("*", "/*"), ("http://h", "/"), ("http://h//a", "/a"),
        ("a://", "/")],
)  # fmt: skip
def test_paths(target, path):
    """Every spelling of a target gives one path."""
    assert normalize_path(target) == path
