"""qproxy survives upstream faults, one row each, driven by the emulator.

Each row requests a whole response and a stream, then checks the same four things: the right error, in bounded
time, with nothing left (sockets, tasks, leases, files), and that the next request works.
"""

import json
import logging
import socket
import ssl
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import trio
import trio.testing
import trustme

from qproxy.emulator import (
    FAULTS,
    CloseConnection,
    Emulator,
    PauseStep,
    RepeatSteps,
    ResetConnection,
    ScriptedReply,
    non_http,
)
from qproxy.emulator.faults import HANG, json_reply
from tests.helpers import HELLO, MODEL, accounts, frames, leftovers, world

ERROR_KEYS = {"message", "type", "param", "code"}


async def in_place(work, *arguments, **options):
    """Run like `trio.to_thread.run_sync`, without a thread."""
    await trio.lowlevel.checkpoint()
    return work(*arguments)


@pytest.fixture(autouse=True)
def no_threads(monkeypatch):
    """Run thread work in place: Trio's test clock would jump while a thread works."""
    monkeypatch.setattr(trio.to_thread, "run_sync", in_place)


@dataclass(frozen=True)
class Expected:
    """The response that a client gets for a fault."""

    status: int
    code: str | None
    has_started: bool = False
    """A stream has started by then: the error is its last frame."""
    within: float = 5.0
    """Seconds of Trio's clock."""
    stream: int | None = None
    """The stream's status if it differs: a client can still read the response chunk by chunk."""


FINE = Expected(200, None)
NO_HTTP = Expected(502, "upstream_invalid_response")
TRUNCATED = Expected(502, "upstream_error", has_started=True)
EXPECTED = {
    "fault-401": Expected(502, "upstream_credentials_exhausted"),
    "fault-429": Expected(429, "rate_limit_exceeded"),
    "fault-quota": Expected(429, "insufficient_quota"),
    "fault-500": Expected(502, "upstream_error"),
    "fault-503": Expected(503, "overloaded"),
    "fault-html": NO_HTTP,
    "fault-filter": Expected(400, "content_filter"),
    "fault-empty": Expected(502, "upstream_error"),
    "fault-cut": TRUNCATED,
    "fault-end": TRUNCATED,
    "fault-hang": Expected(504, "upstream_timeout", has_started=True, within=125),
    "fault-silent": Expected(504, "upstream_timeout", within=125),
    "fault-garbage": Expected(502, "upstream_invalid_response", has_started=True),
    "fault-error-first": Expected(429, "rate_limit_exceeded"),
    "fault-error-late": TRUNCATED,
    "fault-error-finish": Expected(429, "rate_limit_exceeded", has_started=True),
    "fault-reset": TRUNCATED,
    "fault-reset-first": Expected(502, "upstream_error"),
    "fault-drop": Expected(502, "upstream_error"),
    "fault-drip": Expected(504, "request_timeout", has_started=True, within=3601),
    "fault-drip-head": Expected(504, "upstream_timeout", within=301),
    "fault-not-http": Expected(502, "upstream_error"),
    "fault-interim": FINE,
    "fault-interim-flood": NO_HTTP,
    "fault-header-flood": NO_HTTP,
    "fault-endless-head": NO_HTTP,
    "fault-truncated": TRUNCATED,
    "fault-surplus": TRUNCATED,
    "fault-length": NO_HTTP,
    "fault-chunking": Expected(502, "upstream_invalid_response", has_started=True),
    "fault-gzip": NO_HTTP,
    "fault-type": FINE,
    "fault-page-error": Expected(502, "upstream_error"),
    "fault-json-cut": NO_HTTP,
    "fault-json-odd": NO_HTTP,
    "fault-flood": Expected(502, "upstream_invalid_response", stream=200),
    "fault-flood-whole": NO_HTTP,
    "fault-flood-event": NO_HTTP,
    "quirk-index": FINE,
}


@dataclass
class ClientResponse:
    """The response that a client received: the status, the end of its body, and its size."""

    status: int
    tail: str
    size: int

    @property
    def error(self):
        """Return the error object, from the body or from a stream's last frame; None for a whole response."""
        last = (
            frames(self.tail)[-1]
            if self.tail.startswith("data: ") or "\n\ndata: " in self.tail
            else self.tail
        )
        if last == "[DONE]":
            return None
        body = json.loads(last)
        assert "error" in body or body["object"] == "chat.completion", body
        return body.get("error")


async def send_chat(it, body):
    """Send a request and keep only the end of the response, so that the test does not store a flood."""
    raw = json.dumps(body).encode()
    head = [(b"content-type", b"application/json")]
    async with it.client.request("POST", "/v1/chat/completions", headers=head, body=raw) as response:
        tail, size = b"", 0
        while piece := await response.receive():
            tail, size = (tail + piece)[-200_000:], size + len(piece)
    return ClientResponse(response.status, tail.decode("utf-8", "ignore"), size)


async def expect_fault(it, expected, body, caplog):
    """Send a request under a fault and check every condition that must hold afterwards."""
    before = await leftovers(it)
    started_at = trio.current_time()
    answer = await send_chat(it, body)
    assert trio.current_time() - started_at <= expected.within
    has_started = expected.has_started and body["stream"]
    status = expected.stream if body["stream"] and expected.stream else expected.status
    assert answer.status == (200 if has_started else status), answer.tail[-500:]
    if status != 200:
        assert set(answer.error) == ERROR_KEYS
        assert answer.error["code"] == expected.code
        assert answer.error["message"]
    else:
        assert answer.error is None
    assert it.sound()
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR] == []
    assert (await send_chat(it, {**HELLO, "stream": body["stream"]})).status == 200
    assert await leftovers(it) == before
    return answer


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("name", FAULTS)
async def test_every_fault_of_the_emulator(name, stream, caplog, autojump_clock):
    """qproxy survives every fault of the emulator."""
    plan = "coding" if name == "fault-quota" else "payg"
    async with world(accounts=accounts("one", plan=plan)) as it:
        await send_chat(it, HELLO)
        answer = await expect_fault(it, EXPECTED[name], {**HELLO, "model": name, "stream": stream}, caplog)
        if name == "fault-flood" and stream:
            assert answer.size > 100_000_000


def test_every_fault_has_its_row():
    """Every fault of the emulator has an expected response here."""
    assert EXPECTED.keys() == FAULTS.keys()


# The connection to the server


async def refused(host, port):
    raise ConnectionRefusedError(111, "Connection refused")


async def unknown_name(host, port):
    raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")


async def impossible_name(host, port):
    raise UnicodeError("label empty or too long")


async def every_address_fails(host, port):
    causes = [OSError(101, "Network is unreachable"), TimeoutError(110, "Connection timed out")]
    raise OSError("all attempts to connect failed") from ExceptionGroup("many", causes)


async def black_hole(host, port):
    await trio.sleep_forever()


CONNECT_FAULTS = {
    "refused": (refused, Expected(502, "upstream_error")),
    "no such name": (unknown_name, Expected(502, "upstream_error")),
    "no possible name": (impossible_name, Expected(502, "upstream_error")),
    "every address fails": (every_address_fails, Expected(502, "upstream_error")),
    "black hole": (black_hole, Expected(504, "upstream_timeout", within=31)),
}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize(("fault", "expected"), CONNECT_FAULTS.values(), ids=CONNECT_FAULTS)
async def test_an_unreachable_server(fault, expected, stream, caplog, autojump_clock):
    """An unreachable server is a 502 or a 504, as soon as that is known."""
    broken = False

    async def connect(it, host, port):
        return await (fault(host, port) if broken else it(host, port))

    async with world(through=connect) as it:
        await send_chat(it, HELLO)
        await it.server.state.relay.transport.aclose()  # otherwise the idle connection would serve
        broken = True
        before = await leftovers(it)
        started_at = trio.current_time()
        answer = await send_chat(it, {**HELLO, "stream": stream})
        assert (answer.status, answer.error["code"]) == (expected.status, expected.code)
        assert "one.test" in answer.error["message"]
        assert trio.current_time() - started_at <= expected.within
        assert await leftovers(it) == before
        assert not [r for r in caplog.records if r.levelno >= logging.ERROR]
        broken = False
        assert (await send_chat(it, HELLO)).status == 200


async def slow_to_connect(connect, host, port):
    await trio.sleep(9)
    return await connect(host, port)


async def test_a_slow_connection_to_the_server(autojump_clock):
    """A connection that takes almost connect_timeout still serves."""
    async with world(through=slow_to_connect) as it:
        assert (await send_chat(it, HELLO)).status == 200
        assert 9 <= trio.current_time() <= 10


# TLS


def certificates(name, **options):
    """Return the TLS context of a server of this name, and its certificate authority."""
    authority = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(name, **options).configure_cert(context)
    return context, authority


async def over_tls(context, connect, host, port):
    """Return a connection whose other end is the emulator behind TLS."""
    client_end, server_end = trio.testing.memory_stream_pair()
    upstream = await connect(host, port)

    async def copy(source, sink):
        try:
            while data := await source.receive_some(65536):
                await sink.send_all(data)
            await sink.aclose()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            await trio.aclose_forcefully(sink)

    tls = trio.SSLStream(server_end, context, server_side=True, https_compatible=True)
    trio.lowlevel.spawn_system_task(copy, tls, upstream)
    trio.lowlevel.spawn_system_task(copy, upstream, tls)
    return client_end


async def no_tls(connect, host, port):
    return await connect(host, port)


async def tls_that_sends(data, connect, host, port):
    client_end, server_end = trio.testing.memory_stream_pair()
    await server_end.send_all(data)
    trio.lowlevel.spawn_system_task(_hold, server_end)
    return client_end


async def _hold(stream):
    while await stream.receive_some(65536):
        pass


TLS = {
    "plain HTTP": (no_tls, 502),
    "garbage": (lambda *fault: tls_that_sends(b"HTTP/1.1 400 Bad Request\r\n\r\n", *fault), 502),
    "an alert": (lambda *fault: tls_that_sends(b"\x15\x03\x03\x00\x02\x02\x28", *fault), 502),
    "silence": (lambda *fault: tls_that_sends(b"\x16", *fault), 504),
}


@pytest.mark.parametrize(("through", "status"), TLS.values(), ids=TLS)
async def test_tls_that_fails(through, status, caplog, autojump_clock):
    """A handshake that fails or never ends is a 502 or 504 that names the host."""
    account = accounts("one")[0]
    async with world(
        accounts=(type(account)("one", base_url="https://one.test/v1", key="k"),), through=through
    ) as it:
        answer = await send_chat(it, HELLO)
        assert answer.status == status
        assert "one.test" in answer.error["message"]
        assert trio.current_time() <= 32
        assert it.sound()
        assert not [r for r in caplog.records if r.levelno >= logging.ERROR]


@pytest.mark.parametrize(
    ("name", "trusted", "message"),
    [
        ("one.test", False, "certificate verify failed"),
        ("other.test", True, "certificate verify failed"),
        ("one.test", True, None),
    ],
    ids=["unknown authority", "another name", "as it should be"],
)
async def test_certificates(name, trusted, message, tmp_path, autojump_clock):
    """An invalid certificate is rejected with its reason, and a valid one is not."""
    context, authority = certificates(name)
    bundle = tmp_path / "ca.pem"
    (authority if trusted else trustme.CA()).cert_pem.write_to_path(str(bundle))
    account = accounts("one")[0]
    async with world(
        accounts=(type(account)("one", base_url="https://one.test/v1", key="k"),),
        through=lambda *fault: over_tls(context, *fault),
        ca_bundle=str(bundle),
    ) as it:
        answer = await send_chat(it, HELLO)
        assert answer.status == (502 if message else 200)
        if message:
            assert message in answer.error["message"]
        assert it.sound()


# Proxies

PROXY_REFUSES = {
    "needs a password": (ScriptedReply((b"no",), 407, "text/html"), 502),
    "forbids it": (ScriptedReply((b"<html>",), 403, "text/html"), 502),
    "cannot reach it": (ScriptedReply((), 503), 502),
    "is not HTTP": (non_http(b"SSH-2.0-OpenSSH\r\n\r\n"), 502),
    "closes": (non_http(CloseConnection()), 502),
    "resets": (non_http(ResetConnection()), 502),
    "says nothing": (non_http(HANG), 504),
    "floods": (non_http(b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 20_000), 502),
    "drips": (non_http(b"HTTP/1.1 200 ", RepeatSteps((PauseStep(1), b"O"))), 504),
    "opens and closes": (non_http(b"HTTP/1.1 200 OK\r\n\r\n", PauseStep(0.1), CloseConnection()), 502),
    "opens onto garbage": (non_http(b"HTTP/1.1 200 OK\r\n\r\n", b"garbage\r\n\r\n", PauseStep(0.1)), 502),
}


@pytest.mark.parametrize(("reply", "status"), PROXY_REFUSES.values(), ids=PROXY_REFUSES)
async def test_a_proxy_in_the_way(reply, status, caplog, autojump_clock):
    """A proxy that rejects a tunnel, fails or sends invalid data is a 502 or 504 that names it."""
    secure = replace(accounts("one")[0], base_url="https://one.test/v1")
    async with world(proxy="http://proxy.test:3128", accounts=(secure,)) as it:
        it.emulator.script(*[reply] * 3)
        answer = await send_chat(it, HELLO)
        assert answer.status == status
        assert "one.test" in answer.error["message"] or "proxy.test" in answer.error["message"]
        assert trio.current_time() <= 35
        assert it.sound()
        assert not [r for r in caplog.records if r.levelno >= logging.ERROR]
        assert it.emulator.open_connections == 0


PROXY_FORWARDS = {
    "forwards": (None, 200),
    **{name: case for name, case in PROXY_REFUSES.items() if name not in ("forbids it", "cannot reach it")},
    "cannot reach it": (ScriptedReply((b"<html>",), 503, "text/html"), 503),
    "waits too long": (ScriptedReply((b"<html>",), 504, "text/html"), 504),
}


@pytest.mark.parametrize(("reply", "status"), PROXY_FORWARDS.values(), ids=PROXY_FORWARDS)
async def test_a_proxy_that_forwards(reply, status, caplog, autojump_clock):
    """A request to a plain http upstream goes via the proxy; a proxy that fails is an error."""
    async with world(
        proxy="http://proxy.test:3128", upstream_first_byte_timeout=10.0, upstream_read_timeout=10.0
    ) as it:
        it.emulator.script(*[reply] * 3 if reply else ())
        answer = await send_chat(it, HELLO)
        assert answer.status == status
        assert it.sound()
        assert not [r for r in caplog.records if r.levelno >= logging.ERROR]


# What only real sockets can do


@pytest.mark.parametrize("name", ["fault-reset", "fault-reset-first", "fault-cut", "refused"])
async def test_over_real_sockets(name, caplog):
    """Resets and refusals of a real TCP connection leave the count of open files unchanged."""
    emulator = Emulator()

    async def connect(in_memory, host, port):
        return await trio.open_tcp_stream("127.0.0.1", emulator.port if host == "one.test" else 1)

    async with trio.open_nursery() as nursery:
        await nursery.start(emulator.serve)
        names = ("one", "refusing") if name == "refused" else ("one",)
        async with world(emulator=emulator, accounts=accounts(*names), through=connect) as it:
            await send_chat(it, HELLO)
            before = await leftovers(it)
            for stream in (True,) if name == "fault-reset-first" else (False, True):
                model = MODEL if name == "refused" else name
                answer = await send_chat(it, {**HELLO, "model": model, "stream": stream})
                if name == "refused":
                    assert answer.status == 200
                else:
                    assert answer.status == (200 if stream and name != "fault-reset-first" else 502)
                    assert answer.error["code"] == "upstream_error"
                assert (await send_chat(it, HELLO)).status == 200
            assert await leftovers(it) == before
            assert not [r for r in caplog.records if r.levelno >= logging.ERROR]
        nursery.cancel_scope.cancel()


async def test_a_response_before_the_request_is_read(caplog, autojump_clock):
    """A 413 that the upstream sends without reading the body reaches the client, although the body cannot be
    sent."""
    refusal = json_reply({"error": {"message": "too large", "code": "too_large"}}, 413)
    async with world() as it:
        it.emulator.script(ScriptedReply(refusal.steps, 413, "application/json", early=True))
        answer = await send_chat(it, {**HELLO, "messages": [{"role": "user", "content": "x" * 1_000_000}]})
        assert (answer.status, answer.error["code"]) == (413, "request_too_large")
        assert it.sound()
        assert (await send_chat(it, HELLO)).status == 200


# Cut anywhere

RECORDINGS = {"dashscope/payload-on-the-finish": True, "vllm/reasoning-field": False}


@pytest.mark.parametrize(("recording", "stream"), RECORDINGS.items(), ids=RECORDINGS)
async def test_cut_at_every_byte(recording, stream, caplog, autojump_clock):
    """A response truncated at any byte is complete for the client or an error, and nothing is left."""
    raw = (Path(__file__).parents[1] / "recorded" / f"{recording}.sse").read_bytes()
    raw = raw[raw.index(b"\n\n") + 2 :] if raw.startswith(b":") else raw
    async with world() as it:
        await send_chat(it, HELLO)
        before = await leftovers(it)
        account = it.server.state.relay.accounts.accounts[0]
        finish = max(raw.index(reason) for reason in (b'"stop"', b'"tool_calls"') if reason in raw)
        whole = 0
        for cut in range(len(raw)):
            it.emulator.script(*[ScriptedReply((raw[:cut], CloseConnection()))] * 3)
            answer = await send_chat(it, {**HELLO, "stream": stream})
            it.emulator.clear()
            account.record_success()  # the circuit is not tested here
            if answer.status == 200 and answer.error is None:
                whole += 1
                assert cut > finish
                assert not stream or answer.tail.endswith("data: [DONE]\n\n")
            else:
                assert set(answer.error) == ERROR_KEYS
                assert "[DONE]" not in answer.tail
                assert answer.status in (200, 502)
        assert whole > 0
        assert await leftovers(it) == before
        assert (await send_chat(it, HELLO)).status == 200
        assert not [r for r in caplog.records if r.levelno >= logging.ERROR]
