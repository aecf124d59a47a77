"""Responses over a WebSocket: many on one connection, each as a request of its own."""

import json
from contextlib import asynccontextmanager
from functools import partial

import h2.events
import pytest
import trio
from openai.types.responses import ResponseSteerFailedEvent
from openai.types.responses.responses_server_event import ResponsesServerEvent, ResponseWsError
from quart import websocket
from wsproto.connection import Connection, ConnectionType
from wsproto.events import CloseConnection, TextMessage

from qproxy import tools
from qproxy.backends.local import key_file
from qproxy.emulator import PauseStep, ScriptedReply
from qproxy.emulator.faults import json_reply
from qproxy.server import request_context
from tests.disconnects import BEGUN, slow, until
from tests.helpers import MODEL, h2c, leftovers, world
from tests.integration.test_background import get_events
from tests.integration.test_realtime import reject
from tests.openai_types import judge
from tests.realtime_client import talk
from tests.relay.test_tool_loop import calling, saying

PATH = "/v1/responses"
connect = partial(talk, model=None, path=PATH)
BROKEN = json_reply({"error": {"message": "no such thing", "code": "invalid_parameter"}}, 400)


def create(text="Hello", **fields):
    return {"type": "response.create", "model": MODEL, "input": text, **fields}


async def answer(client, text="Hello", **fields):
    """Return the finished response to a `response.create`, or the error."""
    await client.send(create(text, **fields))
    return await finished(client)


async def finished(client):
    """Return the response or the error of the next event that ends a response."""
    while True:
        event = await client.receive()
        if event["type"] == "error":
            return event["error"]
        if event["type"] in ("response.completed", "response.failed", "response.incomplete"):
            return event["response"]


def words(response):
    return response["output"][-1]["content"][0]["text"]


def asked(it):
    """Return the roles and texts of the messages of the last request to the model."""
    return [(m["role"], m["content"]) for m in it.emulator.requests[-1].body["messages"]]


async def test_a_response_is_its_events(autojump_clock):
    """Every message is one event of OpenAI's types, numbered as in a stream, and the last one ends it."""
    async with world() as it, connect(it.app) as client:
        response = await answer(client, stream=True, store=False)
        assert words(response).endswith("You said: Hello")
        for event in client.received:
            judge(ResponsesServerEvent, event)
        assert [event["sequence_number"] for event in client.received] == list(range(len(client.received)))
        assert client.received[0]["type"] == "response.created"
        assert "stream_id" not in client.received[0]


async def test_only_the_new_input_is_sent(autojump_clock):
    """A response that is not stored can be continued on its connection, again and again, and nowhere else."""
    async with world() as it:
        async with connect(it.app) as client:
            first = await answer(client, "One", store=False)
            second = await answer(client, "Two", store=False, previous_response_id=first["id"])
            assert [text for role, text in asked(it) if role == "user"] == ["One", "Two"]
            third = await answer(client, "Three", store=False, previous_response_id=second["id"])
            assert [text for role, text in asked(it) if role == "user"] == ["One", "Two", "Three"]
            gone = await answer(client, "Four", store=False, previous_response_id=second["id"])
            assert (gone["code"], gone["param"]) == ("previous_response_not_found", "previous_response_id")
        async with connect(it.app) as client:
            await answer(client, previous_response_id=third["id"])
            judge(ResponseWsError, client.received[-1])
            assert client.received[-1]["status"] == 400


async def test_stored_responses_are_found_everywhere(autojump_clock):
    """A stored response is continued on another connection and over HTTP, with what was not stored before
    it."""
    async with world() as it:
        async with connect(it.app) as client:
            hidden = await answer(client, "One", store=False)
            stored = await answer(client, "Two", previous_response_id=hidden["id"])
        async with connect(it.app) as client:
            await answer(client, "Three", previous_response_id=stored["id"])
            assert [text for role, text in asked(it) if role == "user"] == ["One", "Two", "Three"]
        status, _, _ = await it.post(
            {"model": MODEL, "input": "Four", "previous_response_id": stored["id"]}, PATH
        )
        assert status == 200
        assert [text for role, text in asked(it) if role == "user"] == ["One", "Two", "Four"]


async def test_a_stream_is_read_again_over_http(autojump_clock):
    """The events of a stored response are kept as server-sent events, and have the same numbers."""
    async with world() as it, connect(it.app) as client:
        response = await answer(client)
        await until(lambda: len(it.server.state.in_flight) == 0)
        await it.server.state.stream_recorder.flush()
        assert await get_events(it, response["id"]) == client.received


async def test_a_cut_response_is_stored_with_what_was_before(autojump_clock):
    """A response whose client disconnected can be read, with the input that was not stored before it."""
    async with world() as it:
        async with connect(it.app) as client:
            hidden = await answer(client, "One", store=False)
            it.emulator.script(slow(BEGUN))
            await client.send(create("Two", previous_response_id=hidden["id"]))
            await client.until("response.output_text.delta")
            cut = next(e["response"]["id"] for e in client.received[::-1] if e["type"] == "response.created")
        await until(lambda: len(it.server.state.in_flight) == 0)
        await it.server.state.stream_recorder.flush()
        status, body = await it.get(f"{PATH}/{cut}")
        assert (status, body["status"]) == (200, "cancelled")
        _, listed = await it.get(f"{PATH}/{cut}/input_items")
        assert [item["role"] for item in listed["data"]] == ["user", "assistant", "user"]


async def test_a_conversation_is_extended(autojump_clock):
    """A response in a conversation gets its items and adds its own, and can be continued by its id too."""
    async with world() as it:
        status, _, made = await it.post({"items": [{"role": "user", "content": "One"}]}, "/v1/conversations")
        assert status == 200
        async with connect(it.app) as client:
            first = await answer(client, "Two", conversation=made["id"])
            assert [text for role, text in asked(it)] == ["One", "Two"]
            await answer(client, "Three", previous_response_id=first["id"])
            assert [text for role, text in asked(it) if role == "user"] == ["One", "Two", "Three"]
            await answer(client, "Four", conversation=made["id"])
            assert [text for role, text in asked(it) if role == "user"] == ["One", "Two", "Four"]


async def test_references_name_items_of_the_connection(autojump_clock):
    """An item of a response that is not stored can be referenced by the response that continues it."""
    async with world() as it, connect(it.app) as client:
        first = await answer(client, "One", store=False)
        reference = {"type": "item_reference", "id": first["output"][0]["id"]}
        await answer(
            client, [reference, {"role": "user", "content": "Two"}], previous_response_id=first["id"]
        )
        assert [role for role, _ in asked(it)] == ["user", "assistant", "user"]


async def test_a_failed_continuation_forgets(autojump_clock):
    """A response is forgotten when its lane cannot continue it, but not when another lane cannot."""
    async with world() as it, connect(it.app) as client:
        first = await answer(client, stream_id="a", store=False)
        follow = {"store": False, "previous_response_id": first["id"]}
        it.emulator.script(BROKEN, BROKEN)
        assert (await answer(client, stream_id="b", **follow))["message"].startswith("no such thing")
        assert (await answer(client, stream_id="a", **follow))["message"].startswith("no such thing")
        lost = await answer(client, stream_id="a", **follow)
        assert lost["code"] == "previous_response_not_found"
        assert client.received[-1]["stream_id"] == "a"


async def test_a_fork(autojump_clock):
    """Two lanes continue one response, and each is continued by itself."""
    async with world() as it, connect(it.app) as client:
        root = await answer(client, "Root", stream_id="main", store=False)
        fork = await answer(client, "Fork", stream_id="fork", store=False, previous_response_id=root["id"])
        main = await answer(client, "Main", stream_id="main", store=False, previous_response_id=root["id"])
        for parent, lane, texts in ((fork, "fork", ["Root", "Fork"]), (main, "main", ["Root", "Main"])):
            await answer(client, "Next", stream_id=lane, store=False, previous_response_id=parent["id"])
            assert [text for role, text in asked(it) if role == "user"] == [*texts, "Next"]
            assert client.received[-1]["stream_id"] == lane


@pytest.mark.parametrize("fields", [{"generate": False}, {"prompt_cache_options": {"prewarm": True}}])
async def test_a_response_is_prepared(fields, autojump_clock):
    """Without `generate` no model is asked; the empty response can be continued, and its input is kept."""
    async with world() as it, connect(it.app) as client:
        prepared = await answer(client, "One", store=False, **fields)
        for event in client.received:
            judge(ResponsesServerEvent, event)
        assert (prepared["status"], prepared["output"]) == ("completed", [])
        assert prepared["usage"]["total_tokens"] == 0
        assert not it.emulator.requests
        await answer(client, "Two", store=False, previous_response_id=prepared["id"])
        assert [text for _, text in asked(it)] == ["One", "Two"]


async def test_instructions_are_prepared_without_an_input(autojump_clock):
    """A request that is only prepared needs no input."""
    async with world() as it, connect(it.app) as client:
        message = create(generate=False, instructions="Be brief.")
        del message["input"]
        await client.send(message)
        assert (await finished(client))["status"] == "completed"


async def test_lanes(autojump_clock):
    """Responses of one lane follow each other, and those of another lane do not wait for them."""
    async with world() as it, connect(it.app) as client:
        it.emulator.script(slow(BEGUN), saying("from b"))
        for lane, text in (("a", "first"), ("b", "other"), ("a", "second")):
            await client.send(create(text, stream_id=lane))
            await trio.sleep(1)
        assert words(await finished(client)) == "from b"
        assert len(it.emulator.requests) == 2
        assert {event["stream_id"] for event in client.received} == {"a", "b"}
        done = [await finished(client) for _ in range(2)]
        assert words(done[0]) == "Hel"
        assert words(done[1]).endswith("You said: second")


async def test_responses_in_flight_are_limited(autojump_clock):
    """Sixteen responses of a connection run at a time, and the seventeenth waits for one of them."""
    async with world() as it, connect(it.app) as client:
        it.emulator.script(*[slow(BEGUN)] * 16)
        for number in range(17):
            await client.send(create(stream_id=f"lane_{number}"))
        await trio.sleep(10)
        assert len(it.emulator.requests) == 16
        for _ in range(17):
            await finished(client)
        assert len(it.emulator.requests) == 17


async def test_lanes_are_limited(autojump_clock):
    """A connection has 32 named lanes and one without a name; one more is an error, and the others go on."""
    async with world() as it, connect(it.app) as client:
        for number in range(32):
            await answer(client, generate=False, stream_id=f"lane.{number}")
        error = await answer(client, stream_id="another")
        assert (error["code"], client.received[-1]["stream_id"]) == (
            "websocket_stream_limit_reached",
            "another",
        )
        judge(ResponseWsError, client.received[-1])
        assert (await answer(client))["status"] == "completed"
        assert (await answer(client, stream_id="lane.7"))["status"] == "completed"


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ("no JSON", "invalid_json"),
        ([], "invalid_json"),
        (create(stream_id=""), "invalid_stream_id"),
        (create(stream_id="a b"), "invalid_stream_id"),
        (create(stream_id=7), "invalid_stream_id"),
        ({"type": "response.cancel"}, "unknown_message_type"),
        ({}, "unknown_message_type"),
        (create(background=True), "unsupported_parameter"),
        (create(temperature=9), "invalid_value"),
        (create(previous_response_id="resp_x"), "previous_response_not_found"),
    ],
)
async def test_a_wrong_message_is_an_error(message, code, autojump_clock):
    """A message that cannot be served is answered by an error, and the connection continues."""
    async with world() as it, connect(it.app) as client:
        await client.send(message)
        event = await client.until("error")
        judge(ResponseWsError, event)
        assert (event["status"], event["error"]["code"]) == (400, code)
        assert (await answer(client))["status"] == "completed"


async def test_steering_is_refused_by_an_event(autojump_clock):
    """`response.steer` gets its input back, on the lane of its response, which is not disturbed."""
    async with world() as it, connect(it.app) as client:
        done = await answer(client, stream_id="a")
        await client.send({"type": "response.steer", "previous_response_id": done["id"], "input": "Stop"})
        event = judge(ResponseSteerFailedEvent, await client.until("response.steer.failed"))
        assert (event.error.code, event.steer.input, event.stream_id) == (
            "steering_not_supported",
            "Stop",
            "a",
        )
        assert (await answer(client))["status"] == "completed"


async def test_a_failure_in_mid_stream_is_one_event(autojump_clock):
    """A response that fails after it started ends with `response.failed` alone: the next message belongs to
    the next response."""
    async with world() as it, connect(it.app) as client:
        it.emulator.script(ScriptedReply((BEGUN,)))
        failed = await answer(client)
        assert (failed["status"], client.received[-1]["type"]) == ("failed", "response.failed")
        for event in client.received:
            judge(ResponsesServerEvent, event)
        assert (await answer(client))["status"] == "completed"
        assert client.received[-1]["sequence_number"] > 0


async def test_the_servers_tools_run(autojump_clock):
    """A tool of the server runs within a response, and its items can be continued on the connection."""

    @tools.function
    async def add(a: int, b: int) -> int:
        """Add two numbers."""
        return a + b

    async with world(functions=[add]) as it, connect(it.app) as client:
        it.emulator.script(calling(("add", {"a": 2, "b": 3})), saying("five"), saying("yes"))
        first = await answer(client, store=False)
        for event in client.received:
            judge(ResponsesServerEvent, event)
        assert [item["type"] for item in first["output"]] == ["mcp_call", "message"]
        await answer(client, "Sure?", store=False, previous_response_id=first["id"])
        assert [role for role, _ in asked(it)] == ["user", "assistant", "tool", "assistant", "user"]


async def test_each_response_is_a_request(tmp_path):
    """Every response has a log line and a row of the ledger with its own tokens; the connection has none."""
    async with world(ledger=str(tmp_path / "ledger")) as it:
        async with connect(it.app) as client:
            await answer(client, generate=False)
            for text in ("One", "Two"):
                await answer(client, text)
            counters = it.server.state.counters
            assert counters.statuses == {200: 3}
            assert [record.status for record in counters.in_flight.values()] == [101]
        await until(lambda: not counters.in_flight)
        assert counters.outcomes == {"ok": 4}
        ledger = it.server.state.ledger
        assert ledger is not None
        rows = await ledger.recent_requests(10)
        assert [(row["model"], row["endpoint"], row["stream"]) for row in rows] == [
            (MODEL, "/responses", 1)
        ] * 2


async def test_limits_of_the_key_apply_to_each_response(tmp_path, autojump_clock):
    """A key's requests per minute count responses, not connections; the error has the headers to wait by."""
    path = tmp_path / "keys.json"
    _, secret = key_file.create(path, name="slow", rpm=2)
    header = (b"authorization", b"Bearer " + secret.encode())
    async with world(keys_file=str(path)) as it, connect(it.app, headers=[header]) as client:
        assert (await answer(client))["status"] == "completed"
        assert (await answer(client))["status"] == "completed"
        assert (await answer(client))["code"] == "rate_limit_exceeded"
        event = judge(ResponseWsError, client.received[-1])
        assert event.status == 429
        assert event.error.headers["retry-after"]
        await trio.sleep(60)
        assert (await answer(client))["status"] == "completed"


async def test_a_prepared_response_counts(tmp_path, autojump_clock):
    """A request without `generate` counts against the key's requests per minute, as one to count tokens."""
    path = tmp_path / "keys.json"
    _, secret = key_file.create(path, name="slow", rpm=1)
    header = (b"authorization", b"Bearer " + secret.encode())
    async with world(keys_file=str(path)) as it, connect(it.app, headers=[header]) as client:
        assert (await answer(client, generate=False))["status"] == "completed"
        assert (await answer(client, generate=False))["code"] == "rate_limit_exceeded"


async def test_a_revoked_key_ends_its_connection_s_responses(tmp_path, autojump_clock):
    """The key is checked for the handshake and again for every response."""
    path = tmp_path / "keys.json"
    key, secret = key_file.create(path, name="short")
    header = (b"authorization", b"Bearer " + secret.encode())
    async with world(keys_file=str(path)) as it:
        assert (await reject(it.app, None, path=PATH))[0] == 401
        async with connect(it.app, headers=[header]) as client:
            assert (await answer(client))["status"] == "completed"
            key_file.revoke(path, key.id)
            await trio.sleep(5)
            assert (await answer(client))["code"] == "invalid_api_key"
            assert client.received[-1]["status"] == 401


async def test_what_is_remembered_is_bounded(autojump_clock):
    """Beyond `responses_socket_max_bytes` the lane used longest ago forgets its response."""
    async with world(responses_socket_max_bytes=2_000) as it, connect(it.app) as client:
        old = await answer(client, "x" * 400, stream_id="old", store=False)
        new = await answer(client, "y" * 400, stream_id="new", store=False)
        error = await answer(client, stream_id="old", store=False, previous_response_id=old["id"])
        assert error["code"] == "previous_response_not_found"
        assert (await answer(client, stream_id="new", store=False, previous_response_id=new["id"]))["output"]


async def test_a_connection_has_a_lifetime(autojump_clock):
    """After `responses_socket_timeout` the response in progress is finished; then an error that clients know
    asks for another connection."""
    async with world(responses_socket_timeout=50.0) as it, connect(it.app) as client:
        await trio.sleep(45)
        it.emulator.script(ScriptedReply((BEGUN, PauseStep(20), *saying("lo").steps)))
        start = trio.current_time()
        await client.send(create())
        await client.send(create("never begun"))
        events, code, _ = await client.end()
        assert [event["type"] for event in events[-2:]] == ["response.completed", "error"]
        judge(ResponseWsError, events[-1])
        assert (events[-1]["error"]["code"], code) == ("websocket_connection_limit_reached", 1000)
        assert trio.current_time() - start == pytest.approx(20, abs=1)
        assert len(it.emulator.requests) == 1


async def test_a_shutdown_ends_an_idle_connection(autojump_clock):
    """A server that stops does not wait for connections without a response."""
    async with world() as it, connect(it.app) as client:
        await answer(client)
        it.server.state.in_flight.drain()
        events, code, _ = await client.end()
        assert (events[-1]["error"]["code"], events[-1]["status"], code) == ("shutting_down", 503, 1012)


async def test_messages_are_bounded(autojump_clock):
    """A message of more than `max_body_bytes` closes the connection with its code; a smaller one does not."""
    async with world(max_body_bytes=200_000) as it, connect(it.app) as client:
        it.emulator.script(saying("fine"))
        assert (await answer(client, "x" * 150_000))["status"] == "completed"
        await client.send(create("x" * 250_000))
        _, code, _ = await client.end()
        assert code == 1009


async def test_no_request_to_read_is_lost(autojump_clock):
    """A view may ask for messages before the server has read the handshake, and gets them all."""
    async with world() as it:

        @it.app.websocket("/echo")
        async def echo():
            request_context.allow_receive()
            request_context.allow_receive()
            await websocket.accept()
            for _ in range(2):
                await websocket.send(await websocket.receive())

        async with talk(it.app, None, path="/echo") as client:
            with trio.fail_after(5):
                for number in range(2):
                    await client.send({"number": number})
                    assert await client.receive() == {"number": number}


async def test_a_request_without_a_handshake():
    """A plain GET is told to open a WebSocket."""
    async with world() as it:
        status, body = await it.get(PATH)
        assert (status, body["error"]["code"]) == (426, "websocket_required")


async def _close(client):
    await client.socket.aclose()


async def _drop(client):
    await trio.aclose_forcefully(client.socket._stream)


@pytest.mark.parametrize("end", [_close, _drop])
async def test_the_end_cancels_everything(end, autojump_clock):
    """Closing the connection closes the upstream of every response on it, and stops its tools."""
    stopped = trio.Event()

    @tools.function
    async def sleep() -> str:
        """Sleep."""
        try:
            await trio.sleep_forever()
        finally:
            stopped.set()

    async with world(functions=[sleep]) as it:
        before = await leftovers(it)
        async with connect(it.app) as client:
            it.emulator.script(slow(BEGUN), ScriptedReply((PauseStep(1000),)), calling(("sleep", {})))
            for lane in ("streaming", "waiting", "calling", "calling"):
                await client.send(create(stream_id=lane))
                await trio.sleep(1)
            assert len(it.emulator.requests) == 3
            assert len(it.server.state.in_flight) == 3
            with trio.fail_after(1):
                await end(client)
                for request in it.emulator.requests[:2]:
                    await request.disconnected.wait()
                await stopped.wait()
                await until(it.sound)
        await until(lambda: not it.server.state.counters.in_flight)
        assert it.server.state.counters.outcomes["client_disconnected"] == 3
        assert await leftovers(it) == before


async def test_the_end_is_noticed_while_the_queue_is_full(autojump_clock):
    """Messages beyond `max_body_bytes` that wait are refused, so that the client's end is still read."""
    async with world(max_body_bytes=20_000) as it, connect(it.app) as client:
        it.emulator.script(ScriptedReply((PauseStep(1000),)))
        await client.send(create())
        await trio.sleep(1)
        for _ in range(4):
            await client.send(create("x" * 15_000))
        for _ in range(2):
            assert (await finished(client))["code"] == "request_too_large"
        with trio.fail_after(1):
            await _close(client)
            await it.emulator.requests[0].disconnected.wait()
            await until(it.sound)
        assert len(it.emulator.requests) == 1


@asynccontextmanager
async def over_http2(app):
    """Yield functions that send a message and receive an event on a stream of an HTTP/2 connection."""
    async with h2c(app) as client:
        number = client.http.get_next_available_stream_id()
        head = [(":method", "CONNECT"), (":scheme", "http"), (":path", PATH), (":authority", "localhost")]
        client.http.send_headers(number, [*head, (":protocol", "websocket"), ("sec-websocket-version", "13")])
        await client.flush()
        response = await client.event(h2.events.ResponseReceived)
        assert dict(response.headers)[b":status"] == b"200"
        frames = Connection(ConnectionType.CLIENT)

        async def send(event):
            client.http.send_data(number, frames.send(event))
            await client.flush()

        async def receive():
            text = ""
            while True:
                for event in frames.events():
                    if not isinstance(event, TextMessage):
                        return event
                    text += event.data
                    if event.message_finished:
                        return json.loads(text)
                frames.receive_data((await client.event(h2.events.DataReceived)).data)

        yield send, receive, partial(client.http.reset_stream, number), client.flush


async def test_over_http2(autojump_clock):
    """A connection may be a stream of an HTTP/2 connection (RFC 8441); resetting it cancels its responses."""
    async with world() as it, over_http2(it.app) as (send, receive, reset, flush):
        await send(TextMessage(data=json.dumps(create())))
        while (event := await receive())["type"] != "response.completed":
            judge(ResponsesServerEvent, event)
        it.emulator.script(slow(BEGUN))
        await send(TextMessage(data=json.dumps(create())))
        while (event := await receive())["type"] != "response.output_text.delta":
            pass
        reset()
        with trio.fail_after(1):
            await flush()
            await it.emulator.requests[-1].disconnected.wait()
            await until(it.sound)


async def test_http2_closes(autojump_clock):
    """A close frame over HTTP/2 is answered."""
    async with world() as it, over_http2(it.app) as (send, receive, _, _):
        await send(CloseConnection(code=1000))
        assert isinstance(await receive(), CloseConnection)


async def test_pages_need_their_origin(autojump_clock):
    """A page that is not allowed cannot open a connection: browsers ask nobody first."""
    async with world() as it:
        status, error = await reject(it.app, None, headers=[(b"origin", b"https://evil.test")], path=PATH)
        assert (status, error["code"]) == (403, "origin_not_allowed")
