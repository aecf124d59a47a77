"""Concurrency limits: requests, their queue, connections, and sizes of heads."""

import json
import logging
import resource
from contextlib import ExitStack, suppress

import h2.events
import pytest
import trio
import trio.testing

from qproxy import http_server
from qproxy.config import Config
from qproxy.emulator import PauseStep, ScriptedReply
from qproxy.emulator.faults import DONE, chunk
from qproxy.limits.concurrency import ConcurrencyLimiter
from qproxy.process import serve
from qproxy.wire.errors import OverloadedError
from tests.helpers import HELLO, H1Client, h1, h2c, served, world

BODY = json.dumps(HELLO).encode()
JSON_HEADER = ("content-type", "application/json")
BEGUN = chunk({"role": "assistant", "content": ""}) + chunk({"content": "Hel"})


async def test_the_queue_is_bounded_and_ordered(autojump_clock):
    """Slots go to waiters in order; a request that waits too long, or finds the queue full, is rejected."""
    admission = ConcurrencyLimiter(1, max_queue_size=1, queue_timeout=1.0)
    leave = await admission.acquire()
    async with trio.open_nursery() as nursery:

        async def wait():
            (await admission.acquire())()

        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        assert (admission.in_use, admission.queue_size) == (1, 1)
        with pytest.raises(OverloadedError) as refusal:
            await admission.acquire()
        assert (trio.current_time(), refusal.value.retry_after) == (0, 1)
        leave()
    leave = await admission.acquire()
    with pytest.raises(OverloadedError):
        await admission.acquire()
    assert trio.current_time() == 1
    leave()
    assert (admission.in_use, admission.queue_size, admission.rejected) == (0, 0, 2)


async def test_a_cancelled_waiter_takes_no_slot(autojump_clock):
    """A waiter cancelled while waiting or just as a slot is released leaves no slot acquired."""
    for leaves_first in (True, False):
        admission = ConcurrencyLimiter(1, max_queue_size=100, queue_timeout=100.0)
        leave = await admission.acquire()

        async def request(admission=admission):
            with ExitStack() as stack:
                stack.callback(await admission.acquire())
                await trio.sleep_forever()

        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(request)
                await trio.testing.wait_all_tasks_blocked()
                if leaves_first:
                    leave()
                scope.cancel()
        if not leaves_first:
            leave()
        assert (admission.in_use, admission.queue_size) == (0, 0)


async def test_too_many_requests_at_once(autojump_clock):
    """Beyond max_requests a request gets a 503 with Retry-After after a second; health checks do not wait."""
    async with world(max_requests=1) as it, trio.open_nursery() as nursery:
        it.emulator.script(ScriptedReply((BEGUN, PauseStep(50), chunk({}, "stop"), DONE)))
        nursery.start_soon(it.stream, HELLO)
        await trio.testing.wait_all_tasks_blocked()
        began = trio.current_time()
        status, headers, body = await it.post(HELLO)
        assert (status, body["error"]["code"], body["error"]["type"]) == (
            503,
            "overloaded",
            "overloaded_error",
        )
        assert headers["retry-after"] == "1"
        assert trio.current_time() - began == 1
        for path in ("/livez", "/readyz", "/v1/models"):
            assert (await it.get(path))[0] == 200
        assert it.server.state.concurrency.rejected == 1
        await trio.sleep(60)
        assert (await it.post(HELLO))[0] == 200
        assert it.server.state.concurrency.in_use == 0


@pytest.mark.parametrize("ends", ["refused", "left"])
async def test_a_slot_is_released(ends, autojump_clock):
    """The slot is released whether a request fails or its client disconnects."""
    async with world(max_requests=1) as it:
        if ends == "refused":
            assert (await it.post({**HELLO, "model": "fault-filter"}))[0] == 400
        else:
            async with h1(it.app) as client:
                it.emulator.script(ScriptedReply((BEGUN, PauseStep(1000))))
                await client.send("POST", "/v1/chat/completions", BODY, [JSON_HEADER])
                await trio.testing.wait_all_tasks_blocked()
                assert it.server.state.concurrency.in_use == 1
                await client.aclose()
                await trio.testing.wait_all_tasks_blocked()
        assert it.server.state.concurrency.in_use == 0
        assert it.sound()


async def test_too_many_connections(monkeypatch, autojump_clock):
    """One connection too many gets an HTTP error and is closed; when another closes, one is accepted
    again."""
    monkeypatch.setattr(http_server.TCPServer, "max_connections", 1)
    async with world() as it:
        async with h1(it.app) as first:
            await first.send("GET", "/livez")
            assert (await first.response())[0] == 200
            async with h1(it.app) as second:
                await second.send("GET", "/livez")
                status, body = await second.response()
                assert (status, json.loads(body)["error"]["code"]) == (503, "overloaded")
                assert await second.stream.receive_some(1) == b""
            assert http_server.TCPServer.connections == 1
        assert http_server.TCPServer.connections == 0
        async with h1(it.app) as third:
            await third.send("GET", "/livez")
            assert (await third.response())[0] == 200


async def test_a_rejected_connection_is_closed(monkeypatch, autojump_clock):
    """A rejected connection that the client keeps open is closed a second later."""
    monkeypatch.setattr(http_server.TCPServer, "max_connections", 0)
    async with world() as it, served(it.app) as stream:
        while await stream.receive_some(65536):
            pass
        assert trio.current_time() <= 1


async def test_a_head_that_is_too_large(autojump_clock):
    """HTTP/1.1 returns 431, HTTP/2 ends the connection; the next connection is served."""
    async with world() as it:
        async with h1(it.app, h11_max_incomplete_size=1000) as client:
            await client.send("GET", "/livez", headers=[("x-large", "x" * 5000)])
            status, body = await client.response()
            assert status == 431
            assert "too large" in json.loads(body)["error"]["message"]
        async with h2c(it.app, h2_max_header_list_size=1000) as client:
            await client.send("GET", "/livez", headers=[("x-large", "x" * 5000)])
            assert isinstance(
                await client.event(h2.events.ConnectionTerminated), h2.events.ConnectionTerminated
            )
        async with h2c(it.app) as client:
            await client.send("GET", "/livez", headers=[("x-large", "x" * 5000)])
            assert await client.event(h2.events.ResponseReceived) is not None


async def test_rejects_bytes_that_are_not_http(autojump_clock):
    """Invalid bytes get a 400 error in OpenAI's format."""
    async with world() as it, h1(it.app) as client:
        client.http.send(_head())
        await client.stream.send_all(b"\x16\x03\x01 garbage\r\n\r\n")
        status, body = await client.response()
        assert status == 400
        assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}


def _head():
    import h11

    return h11.Request(method="GET", target="/", headers=[("host", "x")])


@pytest.mark.parametrize(
    "part", [b"POST /v1/cha", b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n"]
)
async def test_a_head_that_does_not_end(part, autojump_clock):
    """A client that does not complete its head is disconnected after client_idle_timeout."""
    async with world() as it, served(it.app, keep_alive_timeout=7) as stream:
        await stream.send_all(part)
        assert await stream.receive_some(1) == b""
        assert trio.current_time() == 7


async def test_a_body_that_does_not_end(autojump_clock):
    """A client that does not complete its body gets a 408 after body_timeout, and holds no slot meanwhile."""
    async with world(client_body_timeout=5.0) as it, served(it.app) as stream:
        client = H1Client(stream)
        head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        await stream.send_all(head + b'content-length: 100\r\n\r\n{"model"')
        client.http.send(_head())
        await trio.testing.wait_all_tasks_blocked()
        assert it.server.state.concurrency.in_use == 0
        status, body = await client.response()
        assert (status, json.loads(body)["error"]["code"]) == (408, "request_timeout")
        assert trio.current_time() == 5


async def test_a_flood_of_resets(autojump_clock):
    """A client that keeps opening and resetting streams is disconnected; one that rarely does is not."""
    async with world() as it:
        for pause, sent_away in ((0.0, True), (1.0, False)):
            async with h2c(it.app) as client:
                with suppress(trio.BrokenResourceError):
                    for _ in range(300):
                        stream_id = await client.send("GET", "/livez", end=False)
                        client.http.reset_stream(stream_id)
                        await client.flush()
                        await trio.sleep(pause)
                ended = None
                with trio.move_on_after(10):
                    ended = await client.event(h2.events.ConnectionTerminated)
                assert (ended is not None) is sent_away
                if ended is not None:
                    assert ended.error_code == h2.errors.ErrorCodes.ENHANCE_YOUR_CALM


def test_the_limit_on_open_files(monkeypatch, caplog):
    """The process raises its limit as far as allowed, and logs a warning if that is not enough."""
    limits = {}
    monkeypatch.setattr(resource, "getrlimit", lambda what: (1024, 4096))
    monkeypatch.setattr(resource, "setrlimit", lambda what, pair: limits.update({what: pair}))
    serve.raise_file_limit(Config(max_client_connections=1000, max_requests=500))
    assert limits == {resource.RLIMIT_NOFILE: (1564, 4096)}
    assert not caplog.records
    caplog.set_level(logging.WARNING)
    serve.raise_file_limit(Config(max_client_connections=50_000))
    assert limits == {resource.RLIMIT_NOFILE: (4096, 4096)}
    assert "4096" in caplog.text
