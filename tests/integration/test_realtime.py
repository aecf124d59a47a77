"""Realtime sessions pass from a client's WebSocket through the app to the emulator and back."""

import argparse
import base64
import importlib.util
import json
import logging
import socket
import ssl
import struct
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import h2.events
import pytest
import trio
import trio.testing
import trustme
from trio_websocket import ConnectionClosed, ConnectionRejected
from wsproto.connection import Connection, ConnectionType
from wsproto.events import CloseConnection, TextMessage

from qproxy import http_server
from qproxy.access.api_keys import Quota
from qproxy.backends.local import key_file
from qproxy.config.accounts import AccountConfig
from qproxy.config.settings import SETTINGS
from qproxy.emulator import Emulator, PauseStep, ScriptedReply
from qproxy.emulator.faults import json_reply
from qproxy.emulator.realtime_session import tone
from tests.disconnects import real_world, until
from tests.helpers import accounts, h2c, served, world
from tests.realtime_client import BETA, MODEL, TOOL, UPGRADE, over, talk, user

ROOT = Path(__file__).parents[2]
TEXT_ONLY: Any = {"type": "session.update", "session": {"type": "realtime", "output_modalities": ["text"]}}
RESPOND = {"type": "response.create"}
KEY = (b"authorization", b"Bearer secret")


def rejection_of(group):
    """Return (status, error) of a rejected session."""
    while isinstance(group, BaseExceptionGroup):
        (group,) = group.exceptions
    assert isinstance(group, ConnectionRejected)
    return group.status_code, json.loads(group.body or b"")["error"]


async def reject(app, *args, **kwargs):
    with pytest.raises(BaseExceptionGroup) as caught:
        async with talk(app, *args, **kwargs):
            pass
    return rejection_of(caught.value)


async def test_text(autojump_clock):
    """A session sends and receives text, and its log line has the figures."""
    async with world() as it:
        async with talk(it.app) as client:
            await client.until("session.created")
            await client.send({**TEXT_ONLY, "session": {**TEXT_ONLY["session"], "tracing": "auto"}})
            await client.until("session.updated")
            await client.send(user("Hello"))
            await client.send(RESPOND)
            await client.until("response.done")
            text = "".join(e["delta"] for e in client.received if e["type"] == "response.output_text.delta")
            assert text.endswith("You said: Hello")
            record = next(iter(it.server.state.counters.in_flight.values()))
            await client.socket.aclose()
        assert it.sound()
        assert it.server.state.counters.outcomes == {"ok": 1}
        fields = record.to_json()
        logged = {
            name: fields[name]
            for name in (
                "path",
                "status",
                "account",
                "model",
                "prompt_tokens",
                "completion_tokens",
                "ignored",
            )
        }
        assert logged == {
            "path": "/v1/realtime",
            "status": 101,
            "account": "one",
            "model": MODEL,
            "prompt_tokens": 10,
            "completion_tokens": 5,
            "ignored": "session.tracing",
        }


async def test_a_tool(autojump_clock):
    """A flat tool is called, and its result produces a response."""
    async with world() as it, talk(it.app) as client:
        await client.send({"type": "session.update", "session": {"tools": [TOOL], "modalities": ["text"]}})
        await client.send(user("What is the weather in Hangzhou?"))
        await client.send(RESPOND)
        called = await client.until("response.function_call_arguments.done")
        assert called["name"] == "get_weather"
        assert "city" in json.loads(called["arguments"])
        output = {"type": "function_call_output", "call_id": called["call_id"], "output": "rain"}
        await client.send({"type": "conversation.item.create", "item": output})
        await client.send(RESPOND)
        done = await client.until("response.output_text.done")
        assert "rain" in done["text"]


async def test_sound(autojump_clock):
    """A tone at 24 kHz reaches the model as that tone, gets a response when it ends, and is returned."""
    async with world() as it, talk(it.app, headers=[BETA]) as client:
        transcribed = {"input_audio_transcription": {"model": "whisper-1"}}
        await client.send({"type": "session.update", "session": transcribed})
        sound = tone(440, 0.5) + bytes(48_000 * 2)
        for start in range(0, len(sound), 4800):
            audio = base64.b64encode(sound[start : start + 4800]).decode()
            await client.send({"type": "input_audio_buffer.append", "audio": audio})
        await client.until("input_audio_buffer.speech_started")
        transcription = await client.until("conversation.item.input_audio_transcription.completed")
        assert transcription["transcript"].endswith("at about 440 Hz")
        await client.until("response.done")
        back = b"".join(
            base64.b64decode(e["delta"]) for e in client.received if e["type"] == "response.audio.delta"
        )
        assert len(back) / 48_000 == pytest.approx(1.3, abs=0.2)


@pytest.mark.parametrize("way", ["header", "page"])
async def test_a_key(way, autojump_clock):
    """A key comes in a header, or from a page as a subprotocol, of which only `realtime` is chosen."""
    protocols = ["realtime", "openai-insecure-api-key.secret", "openai-beta.realtime-v1"]
    async with world(api_keys=["secret"]) as it:
        given = {"headers": [KEY]} if way == "header" else {"subprotocols": protocols}
        async with talk(it.app, **given) as client:
            created = await client.until("session.created")
            assert ("modalities" in created["session"]) == (way == "page")
            assert client.socket.subprotocol == ("realtime" if way == "page" else None)
        assert it.emulator.sessions[0].headers["authorization"] == "Bearer sk-test-key"
        assert "secret" not in json.dumps(it.emulator.sessions[0].headers)


REFUSALS = {
    "no key": ({"api_keys": ["secret"]}, {}, 401, "invalid_api_key"),
    "a wrong key": ({"api_keys": ["secret"]}, {"subprotocols": ["realtime", "openai-insecure-api-key.no"]},
        401, "invalid_api_key"),
    "no model": ({}, {"model": ""}, 400, None),
    "a model that is none": ({}, {"model": "qwen-x"}, 404, "model_not_found"),
    "a page": ({}, {"headers": [(b"origin", b"https://evil.test")]}, 403, "origin_not_allowed"),
    "no account for it": ({"accounts": accounts("one", kind="openai_compatible")}, {}, 404,
        "model_not_found"),
    "another path": ({}, {"path": "/v1/chat/completions"}, 426, "websocket_not_supported"),
    "no path": ({}, {"path": "/v1/nothing"}, 426, "websocket_not_supported"),
    "the account's key": ({}, {"model": "fault-401"}, 502, "upstream_credentials_exhausted"),
    "the account's quota": ({}, {"model": "fault-quota"}, 429, "insufficient_quota"),
    "an error at once": ({}, {"model": "fault-rt-early"}, 429, "rate_limit_exceeded"),
}  # fmt: skip


@pytest.mark.parametrize(("settings", "arguments", "status", "code"), REFUSALS.values(), ids=REFUSALS)
async def test_rejections(settings, arguments, status, code, autojump_clock):
    """A session is rejected in HTTP before it is accepted, and nothing is held."""
    async with world(**settings) as it:
        received, error = await reject(it.app, **arguments)
        assert (received, error["code"]) == (status, code)
        assert set(error) == {"message", "type", "param", "code"}
        assert it.sound()
        assert not it.server.state.counters.in_flight


async def test_a_page_of_an_allowed_origin(autojump_clock):
    """A page of an allowed origin needs no key when no client needs one."""
    origin = (b"origin", b"https://app.test")
    async with world(cors_origins=["https://app.test"]) as it, talk(it.app, headers=[origin]) as client:
        await client.until("session.created")


async def test_another_account_is_tried(autojump_clock):
    """A rejection by one account moves the session to the next; the client gets its own model's name."""
    async with world(accounts=accounts("one", "two"), aliases={"gpt-realtime": MODEL}) as it:
        it.emulator.script(json_reply({"error": {"code": "insufficient_quota", "message": "no"}}, 429))
        async with talk(it.app, "gpt-realtime") as client:
            created = await client.until("session.created")
        assert created["session"]["model"] == "gpt-realtime"
        assert it.emulator.sessions[0].model == MODEL


ENDS = {
    "fault-rt-cut": (1011, "session_closed", "upstream_truncated"),
    "fault-rt-close": (1011, "session_closed", "upstream_truncated"),
    "fault-rt-full": (1013, "session_closed", "upstream_truncated"),
    "fault-rt-bye": (1000, "session_closed", "upstream_truncated"),
    "fault-rt-deaf": (1011, "upstream_ping_timeout", "upstream_truncated"),
    "fault-rt-silent": (1000, "session_idle", "internal_error"),
}


@pytest.mark.parametrize(("model", "end"), ENDS.items(), ids=ENDS)
async def test_the_end_of_a_session(model, end, autojump_clock):
    """The client gets a last error event and a close code for any upstream fault."""
    code, name, outcome = end
    async with world() as it:
        async with talk(it.app, model) as client:
            await client.until("session.created")
            await client.send(RESPOND)
            with trio.fail_after(700):
                events, closed, reason = await client.end()
        assert closed == code
        assert [event["error"]["code"] for event in events] == [name]
        assert reason == events[-1]["error"]["message"][: len(reason)]
        assert reason
        assert it.server.state.counters.outcomes == {outcome: 1}
        assert it.sound()


async def test_a_session_that_is_finished(autojump_clock):
    """`session.finish` is Qwen's, and the upstream's response is a graceful close."""
    async with world() as it, talk(it.app) as client:
        await client.send({"type": "session.finish"})
        events, code, _ = await client.end()
        assert [event["type"] for event in events] == ["session.created"]
        assert code == 1000
    assert it.server.state.counters.outcomes == {"ok": 1}


async def test_invalid_upstream_events(autojump_clock):
    """An invalid upstream message becomes an error event; the session continues."""
    for model, count in (("fault-rt-garbage", 2), ("fault-rt-binary", 1)):
        async with world() as it, talk(it.app, model) as client:
            await client.send(RESPOND)
            await client.until("session.created")
            for _ in range(count):
                assert (await client.receive())["error"]["code"] == "upstream_invalid_response"


async def test_mistakes_do_not_end_a_session(autojump_clock):
    """A client's mistake is an error event, and later events still work."""
    async with world() as it, talk(it.app) as client:
        create, items = (
            '{"type": "conversation.item.create", "item": ',
            ("1}", "[[]]}", '{"type": "message"}}'),
        )
        for mistake in (
            "{",
            b"\x00",
            '{"type": "session.update", "session": 1}',
            *(create + item for item in items),
        ):
            await client.send(mistake)
            await client.until("error")
        await client.send(TEXT_ONLY)
        await client.until("session.updated")


async def test_the_time_is_limited(autojump_clock):
    """A session ends at realtime_timeout."""
    async with world(realtime_timeout=50.0) as it, talk(it.app) as client:
        await client.until("session.created")
        start = trio.current_time()
        events, code, _ = await client.end()
        assert trio.current_time() - start == pytest.approx(50, abs=1)
        assert (events[-1]["error"]["code"], code) == ("request_timeout", 1000)


async def test_the_server_stops(autojump_clock):
    """A shutdown sends an error event to each open session before it closes."""
    async with world() as it, talk(it.app) as client:
        await client.until("session.created")
        it.server.state.in_flight.end()
        events, code, _ = await client.end()
        assert (events[-1]["error"]["code"], code) == ("shutting_down", 1012)


@pytest.mark.parametrize("size", [70_000, 2_000_000])
async def test_messages_have_a_size(size, autojump_clock):
    """A message that is too large ends the session with its close code; a smaller one does not."""
    async with world(realtime_max_message_bytes=1_000_000) as it:
        async with talk(it.app, websocket_max_message_size=1_000_000) as client:
            await client.until("session.created")
            await client.send(json.dumps({"type": "x", "a": "y" * size}))
            if size < 1_000_000:
                assert (await client.until("error"))["error"]["code"] == "invalid_value"
            else:
                assert (await client.end())[1] == 1009
        assert it.sound()


@asynccontextmanager
async def narrow(emulator, **settings):
    """Return a world whose streams have no buffer: a send waits until it is read."""
    async with trio.open_nursery() as nursery:

        async def through(connect, host, port):
            client_end, server_end = trio.testing.lockstep_stream_pair()
            nursery.start_soon(emulator.handle, server_end)
            return client_end

        async with world(emulator=emulator, through=through, **settings) as it:
            yield it
        nursery.cancel_scope.cancel()


async def test_a_client_that_does_not_read(autojump_clock, monkeypatch):
    """A client that stops reading stops the upstream after a few events, and times out."""
    monkeypatch.setattr(http_server.TCPServer, "write_timeout", 7.0)
    emulator = Emulator()
    async with (
        narrow(emulator) as it,
        served(it.app, pair=trio.testing.lockstep_stream_pair) as stream,
        over(stream, "fault-rt-flood") as client,
    ):
        await client.send(RESPOND)
        await client.until("response.output_audio.delta")
        client.socket._recv_channel = None  # no reader of the next message: the reader task waits
        await trio.sleep(1)
        sent = emulator.sessions[0].sent_events
        assert sent < 8
        with trio.fail_after(10):
            await emulator.sessions[0].closed.wait()
        assert emulator.sessions[0].sent_events == sent
        await trio.testing.wait_all_tasks_blocked()
        assert it.sound()


async def test_a_server_that_does_not_read(autojump_clock):
    """An upstream that stops reading stops the client after a few events, and the session times out."""
    emulator = Emulator()
    async with (
        narrow(emulator) as it,
        served(it.app, pair=trio.testing.lockstep_stream_pair) as stream,
        over(stream, "fault-rt-stuck") as client,
    ):
        await client.until("session.created")
        await client.send(RESPOND)
        sent = 0

        async def send_continuously():
            nonlocal sent
            with suppress(ConnectionClosed):
                while True:
                    await client.send({"type": "x", "a": "y" * 60_000})
                    sent += 1

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_continuously)
            with trio.fail_after(60):
                events, code, _ = await client.end()
        assert sent < 12
        assert (events[-1]["error"]["code"], code) == ("upstream_timeout", 1011)
        assert it.sound()


async def close_socket(client, stream):
    await client.socket.aclose()


async def abort_stream(client, stream):
    await trio.aclose_forcefully(stream)


async def reset_stream(client, stream):
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    await trio.aclose_forcefully(stream)


@pytest.mark.parametrize("disconnect", [close_socket, abort_stream, reset_stream])
@pytest.mark.parametrize("moment", ["quiet", "while the server speaks"])
async def test_a_client_that_disconnects(disconnect, moment, caplog):
    """On real sockets a disconnect closes the upstream connection and releases everything."""
    async with real_world() as (it, connect):
        stream = await connect()
        async with over(stream, "fault-rt-flood") as client:
            await client.until("session.created")
            if moment != "quiet":
                await client.send(RESPOND)
                await client.until("response.output_audio.delta")
            (session,) = it.emulator.sessions
            with trio.fail_after(2):
                await disconnect(client, stream)
                await session.closed.wait()
                await until(
                    lambda: (
                        it.sound()
                        and not len(it.server.state.in_flight)
                        and not it.server.state.concurrency.in_use
                    )
                )
        assert it.server.state.counters.outcomes == {"ok": 1}
        await until(lambda: http_server.TCPServer.connections == 0)
        assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


@pytest.mark.parametrize("disconnect", [close_socket, abort_stream])
async def test_a_disconnect_closes_the_upstream_in_time(disconnect, autojump_clock):
    """A disconnect closes the upstream within 100 ms, even without a close frame from it."""
    async with world() as it, served(it.app) as stream, over(stream, "fault-rt-deaf") as client:
        await client.until("session.created")
        await client.send(RESPOND)
        await trio.sleep(1)
        assert not it.sound()
        with trio.fail_after(0.1):
            await disconnect(client, stream)
            await until(
                lambda: (
                    it.sound()
                    and not len(it.server.state.in_flight)
                    and not it.server.state.concurrency.in_use
                )
            )


async def test_a_disconnect_before_the_session_is_accepted():
    """A disconnect closes an upstream connection that is still being established."""
    async with real_world() as (it, connect):
        it.emulator.script(ScriptedReply((PauseStep(1000),)))
        stream = await connect()
        arguments = UPGRADE.replace(b"GET /", f"GET /v1/realtime?model={MODEL}".encode())
        await stream.send_all(arguments.replace(b"host: x", b"host: localhost"))
        with trio.fail_after(5):
            await until(lambda: it.emulator.requests)
        await trio.sleep(0.01)
        assert not it.sound()
        with trio.fail_after(2):
            await trio.aclose_forcefully(stream)
            await it.emulator.requests[-1].disconnected.wait()
            await until(it.sound)


async def test_a_rejection_over_http2(autojump_clock):
    """A rejection over HTTP/2 is a response with its status, and the connection continues."""
    async with world(api_keys=["secret"]) as it, h2c(it.app) as client:
        for path, status in ((f"/v1/realtime?model={MODEL}", b"401"), ("/v1/models", b"426")):
            number = client.http.get_next_available_stream_id()
            head = [
                (":method", "CONNECT"),
                (":protocol", "websocket"),
                (":scheme", "http"),
                (":authority", "localhost"),
            ]
            client.http.send_headers(number, [*head, (":path", path), ("sec-websocket-version", "13")])
            await client.flush()
            with trio.fail_after(5):
                response = await client.event(h2.events.ResponseReceived)
                assert dict(response.headers)[b":status"] == status
                assert "error" in json.loads((await client.event(h2.events.DataReceived)).data)
                await client.event(h2.events.StreamEnded)
            client.seen.clear()
        await client.send("GET", "/livez")
        assert await client.event(h2.events.ResponseReceived) is not None


async def test_a_closing_message_reaches_the_client(autojump_clock):
    """An error event right before the upstream closes reaches the client, even while the client sends."""
    async with world() as it, talk(it.app, "fault-rt-words") as client:
        await client.send(RESPOND)
        with suppress(ConnectionClosed):
            for _ in range(5):
                await client.send({"type": "response.cancel"})
        events, code, _ = await client.end()
        codes = [event["error"]["code"] for event in events if event["type"] == "error"]
        assert codes == ["the_reason", "session_closed"]
        assert code == 1008


async def test_over_http2(autojump_clock):
    """A session has a stream of its own over HTTP/2 (RFC 8441)."""
    async with world() as it, h2c(it.app) as client:
        fields = [(":protocol", "websocket"), ("sec-websocket-version", "13")]
        number = client.http.get_next_available_stream_id()
        head = [
            (":method", "CONNECT"),
            (":scheme", "http"),
            (":path", f"/v1/realtime?model={MODEL}"),
            (":authority", "localhost"),
        ]
        client.http.send_headers(number, [*head, *fields])
        await client.flush()
        response = await client.event(h2.events.ResponseReceived)
        assert dict(response.headers)[b":status"] == b"200"
        frames = Connection(ConnectionType.CLIENT)

        async def until(kind):
            text = ""
            while True:
                for event in frames.events():
                    if isinstance(event, TextMessage):
                        text += event.data
                        if event.message_finished:
                            logged, text = json.loads(text), ""
                            if logged["type"] == kind:
                                return logged
                    elif isinstance(event, CloseConnection):
                        return event
                data = await client.event(h2.events.DataReceived)
                frames.receive_data(data.data)

        async def send(event):
            client.http.send_data(number, frames.send(event))
            await client.flush()

        assert (await until("session.created"))["session"]["model"] == MODEL
        await send(TextMessage(data=json.dumps(TEXT_ONLY)))
        await until("session.updated")
        await send(CloseConnection(code=1000))
        assert isinstance(await until("never"), CloseConnection)
        await client.event(h2.events.StreamEnded)
        await trio.sleep(0.1)
        assert it.sound()


async def create_key(tmp_path, **limits):
    file = tmp_path / "keys.json"
    _, secret = key_file.create(file, name="bob", **limits)
    return {"keys_file": str(file), "ledger": str(tmp_path / "ledger")}, [
        (b"authorization", f"Bearer {secret}".encode())
    ]


async def test_sessions_and_minutes_count(tmp_path, autojump_clock):
    """A session counts one request of its key's rate limit when it starts, and one for every further
    minute."""
    settings, headers = await create_key(tmp_path, rpm=2)
    async with world(**settings) as it:
        async with talk(it.app, headers=headers), talk(it.app, headers=headers):
            assert (await reject(it.app, headers=headers))[1]["code"] == "rate_limit_exceeded"
            await trio.sleep(59)  # two slots have returned, and two are used at the end of the minute
            await trio.sleep(3)
            assert (await reject(it.app, headers=headers))[0] == 429
        await trio.sleep(60)
        async with talk(it.app, headers=headers):
            pass


async def exhaust(it, headers, code):
    """Run two responses and check that the session ends with this code."""
    async with talk(it.app, headers=headers) as client:
        await client.send(TEXT_ONLY)
        for _ in range(2):
            await client.send(user("Hello"))
            await client.send(RESPOND)
        events, closed, _ = await client.end()
        assert (events[-1]["error"]["code"], closed) == (code, 1008)
        assert [event["type"] for event in events].count("response.done") == 2
        await client.socket.aclose()
    await until(it.sound)
    assert (await reject(it.app, headers=headers))[0] == 429


async def test_tokens_count_during_a_session(tmp_path, autojump_clock):
    """A key over its tokens per minute gets an error after that response, and each token counts once."""
    settings, headers = await create_key(tmp_path, tpm=20)
    async with world(**settings) as it:
        await exhaust(it, headers, "rate_limit_exceeded")
        await trio.sleep(31)  # 30 of 20 were used: ten return in half a minute
        async with talk(it.app, headers=headers):
            pass


async def test_a_budget_applies_during_a_session(tmp_path):
    """A token budget ends a session too, although the ledger records a session only at its end."""
    settings, headers = await create_key(tmp_path, budgets=(Quota("day", tokens=25),))
    async with world(**settings) as it:
        await exhaust(it, headers, "insufficient_quota")


@pytest.mark.parametrize("secure", [False, True], ids=["http", "https"])
async def test_through_a_proxy(secure, autojump_clock, tmp_path):
    """A session reaches the upstream by CONNECT, with the certificates of `ca_bundle`."""
    emulator, arguments = Emulator(), []
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("one.test").configure_cert(context)
    async with trio.open_nursery() as nursery:

        async def proxy(stream):
            arguments.append(bytes(await stream.receive_some(4096)).partition(b"\r\n")[0])
            await stream.send_all(b"HTTP/1.1 200 Connected\r\n\r\n")
            if secure:
                stream = trio.SSLStream(stream, context, server_side=True, https_compatible=True)
            await emulator.handle(stream)

        async def through(connect, host, port):
            assert (host, port) == ("proxy.test", 3128)
            client_end, server_end = trio.testing.memory_stream_pair()
            nursery.start_soon(proxy, server_end)
            return client_end

        scheme = "https" if secure else "http"
        account = AccountConfig("one", base_url=f"{scheme}://one.test/v1", key="sk-test-key")
        settings = {
            "proxy": "http://proxy.test:3128",
            "ca_bundle": str(tmp_path / "ca.pem"),
            "accounts": (account,),
        }
        async with world(through=through, **settings) as it:
            async with talk(it.app) as client:
                await client.until("session.created")
            await trio.sleep(1)
            assert it.sound()
        assert arguments == [b"CONNECT one.test:%d HTTP/1.1" % (443 if secure else 80)]
        nursery.cancel_scope.cancel()


async def test_the_example(capsys):
    """The script of docs/realtime.md prints the page's lines on the emulator."""
    spec = importlib.util.spec_from_file_location("example", ROOT / "scripts/realtime.py")
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    arguments = {"model": MODEL, "key": "any", "say": "Hello", "tone": None, "tool": True, "emulator": True}
    with trio.fail_after(20):
        await example.main(argparse.Namespace(**arguments))
    shown = capsys.readouterr().out
    page = (ROOT / "docs/realtime.md").read_text()
    for line in page.partition("--say Hello\n")[2].partition("…")[0].splitlines():
        if not line.startswith("response.output_text"):
            assert line in shown
    assert "response.function_call_arguments.done" in shown
    assert "light rain" in shown


def test_the_page_has_every_setting_and_every_end():
    """docs/realtime.md names the settings of sessions and the codes that end them."""
    page = (ROOT / "docs/realtime.md").read_text()
    names = [name for name in SETTINGS if name.startswith("realtime_")]
    assert len(names) == 5
    for name in [*names, *(code for _, code, _ in ENDS.values()), "shutting_down", "request_timeout"]:
        assert f"`{name}`" in page
