"""The fast path and Quart's router serve the same; an app with custom hooks uses Quart's router."""

import gzip
import json
import re

import h11
import pytest
import trio
import trio.testing

from tests.helpers import HELLO, h1, world

PATH = "/v1/chat/completions"
JSON = (b"content-type", b"application/json")
KEY = (b"authorization", b"Bearer secret")
VARYING = {"x-request-id", "openai-processing-ms", "x-qproxy-overhead-ms"}

REQUESTS = {
    "whole": (PATH, [KEY, JSON], HELLO),
    "without v1": ("/chat/completions", [KEY, JSON], HELLO),
    "a stream": (PATH, [KEY, JSON], {**HELLO, "stream": True}),
    "a trailing slash": (PATH + "/", [KEY, JSON], HELLO),
    "embeddings": ("/v1/embeddings", [KEY, JSON], {"model": "text-embedding-v4", "input": ["a", "b"]}),
    "no key": (PATH, [JSON], HELLO),
    "a wrong key": (PATH, [(b"authorization", b"Bearer no"), JSON], HELLO),
    "a wrong type": (PATH, [KEY, (b"content-type", b"text/plain")], HELLO),
    "not JSON": (PATH, [KEY, JSON], b"{"),
    "nothing": (PATH, [KEY, JSON], b""),
    "a wrong field": (PATH, [KEY, JSON], {**HELLO, "messages": 1}),
    "too large": (PATH, [KEY, JSON], b" " * 2000),
    "compressed": (
        PATH,
        [KEY, JSON, (b"content-encoding", b"gzip")],
        gzip.compress(json.dumps(HELLO).encode()),
    ),
    "not compressed as it says": (PATH, [KEY, JSON, (b"content-encoding", b"gzip")], HELLO),
    "compressed in another way": (PATH, [KEY, JSON, (b"content-encoding", b"br")], HELLO),
    "from a page": (PATH, [KEY, JSON, (b"origin", b"https://app.test")], HELLO),
    "a model's server that fails": (PATH, [KEY, JSON], {**HELLO, "model": "fault-500"}),
    "a model's quota": (PATH, [KEY, JSON], {**HELLO, "model": "fault-quota"}),
    "a stream that breaks": (PATH, [KEY, JSON], {**HELLO, "model": "fault-cut", "stream": True}),
    "a model that is none": (PATH, [KEY, JSON], {**HELLO, "model": "gpt-x"}),
    "ignored fields": (PATH, [KEY, JSON], {**HELLO, "user": "me", "logit_bias": {}}),
}


async def stable_response(it, path, headers, body):
    """Return (status, stable headers, body without varying values)."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    async with it.client.request("POST", path, headers=headers, body=raw) as response:
        text = (await response.read()).decode()
    fields = {name.decode().lower(): value.decode() for name, value in response.headers}
    varying = re.sub(r'"(id|created)":("[^"]*"|\d+)', r'"\1":…', text)
    return (
        response.status,
        {n: v for n, v in fields.items() if n not in VARYING | {"content-length"}},
        varying,
    )


@pytest.mark.parametrize(("path", "headers", "body"), REQUESTS.values(), ids=REQUESTS)
async def test_both_paths_serve_the_same(autojump_clock, path, headers, body):
    """Status, headers and body are the same on the fast path and Quart's router, for any request."""
    found = []
    for hooked in (False, True):
        async with world(api_keys=["secret"], max_body_bytes=1000, cors_origins=["https://app.test"]) as it:
            if hooked:
                it.app.before_request(_nothing)
            found.append(await stable_response(it, path, headers, body))
            assert it.sound()
    assert found[0] == found[1]


@pytest.mark.parametrize("hooked", [False, True], ids=["lane", "quart"])
async def test_a_truncated_stream_keeps_the_connection(hooked, autojump_clock):
    """After the error frame the body has its regular end, and the connection serves the next request."""
    body = json.dumps({**HELLO, "model": "fault-cut", "stream": True}).encode()
    async with world() as it:
        if hooked:
            it.app.before_request(_nothing)
        async with h1(it.app) as client:
            for _ in range(2):
                await client.send("POST", PATH, body, [JSON])
                status, text = await client.response()
                assert status == 200
                assert b'data: {"error"' in text
                client.http.start_next_cycle()


async def _nothing():
    return None


async def test_quart_serves_no_model_request(monkeypatch):
    """Model requests do not use Quart's machinery, even after it has served others."""
    async with world() as it:
        await it.get("/livez")
        await it.get("/nowhere")

        async def never(request):
            raise AssertionError

        monkeypatch.setattr(it.app, "handle_request", never)
        assert (await it.post(HELLO))[0] == 200
        assert (await it.stream(HELLO))[0] == 200


async def test_an_app_with_hooks_uses_quart():
    """A before_request function of a program is called for all requests."""
    async with world() as it:
        hook_calls = []

        async def count_request():
            hook_calls.append(1)

        await it.post(HELLO)
        it.app.before_request(count_request)
        await it.post(HELLO)
        assert hook_calls == [1]


async def test_an_exception_in_a_view_is_logged(caplog, monkeypatch):
    """An exception in a view becomes a 500 without details, and a line in the log."""
    async with world() as it:
        monkeypatch.setattr(it.server.state.concurrency, "acquire", None)
        status, _, body = await it.post(HELLO)
        assert (status, body["error"]["code"]) == (500, "internal_error")
        assert "TypeError" in caplog.text


async def test_a_length_of_more_digits_than_python_reads():
    """A content-length beyond Python's digit limit, which another ASGI server may pass, is too large."""
    async with world() as it:
        status, _, body = await it.post(HELLO, headers=[(b"content-length", b"9" * 5000)])
        assert (status, body["error"]["code"]) == (413, "request_too_large")


async def test_a_body_that_does_not_come(autojump_clock):
    """A body that stops is rejected after `body_timeout`."""
    async with world(client_body_timeout=5.0) as it, h1(it.app) as client:
        started_at = trio.current_time()
        await client.stream.send_all(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: "
            b"application/json\r\ncontent-length: 100\r\n\r\n{"
        )
        client.http.send(
            h11.Request(method="POST", target="/", headers=[("host", "x"), ("content-length", "0")])
        )
        head = await client.event()
        assert head.status_code == 408
        assert trio.current_time() - started_at == pytest.approx(5.0, abs=0.5)


PACES = {
    "a steady upload longer than the timeout": (2.0, 600, 200),
    "slower than the minimum": (1.0, 50, 408),
    "a byte before each timeout": (4.9, 1, 408),
    "a pause": (5.1, 10_000, 408),
}


@pytest.mark.parametrize("hooked", [False, True], ids=["lane", "quart"])
@pytest.mark.parametrize(("pause", "size", "status"), PACES.values(), ids=PACES)
async def test_the_pace_of_a_body(pause, size, status, hooked, autojump_clock):
    """A body may take any time that its minimum rate allows; silence and drips end it."""
    body = json.dumps({**HELLO, "messages": [{"role": "user", "content": "a" * 30_000}]}).encode()
    async with world(client_body_timeout=5.0, client_min_body_rate=100) as it, h1(it.app) as client:
        if hooked:
            it.app.before_request(_nothing)
        head = [(b"host", b"localhost"), JSON, (b"content-length", b"%d" % len(body))]
        data = client.http.send(h11.Request(method="POST", target=PATH, headers=head))
        await client.stream.send_all(data)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_drip, client.stream, body, pause, size)
            assert (await client.event()).status_code == status
            nursery.cancel_scope.cancel()


async def _drip(stream, body, pause, size):
    for start in range(0, len(body), size):
        await stream.send_all(body[start : start + size])
        await trio.sleep(pause)


async def test_a_disconnect_before_the_body_is_complete(autojump_clock):
    """A disconnect during the body leaves nothing held, and is not logged as a fault."""
    async with world() as it:
        async with h1(it.app) as client:
            await client.stream.send_all(
                b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n{"
            )
            await trio.testing.wait_all_tasks_blocked()
            await client.aclose()
            await trio.testing.wait_all_tasks_blocked()
            assert it.sound()
        assert it.server.state.counters.outcomes == {"client_disconnected": 1}
