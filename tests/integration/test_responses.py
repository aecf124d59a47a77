"""The Responses API works in memory and with the official client over real sockets."""

import json
from dataclasses import replace

import openai
import pytest
import trio
from openai.types.responses import Response, ResponseItemList
from pydantic import BaseModel

from qproxy.bootstrap.app import build_server
from qproxy.bootstrap.reload import rebuild_state
from qproxy.config import Config
from qproxy.emulator import ScriptedReply
from tests.helpers import MODEL, accounts, world
from tests.integration.test_openai_sdk import run, sdk
from tests.openai_types import judge, refusal
from tests.wire.endpoints.responses.test_encoder import read
from tests.wire.test_recorded_streams import FILES, TOOLS, expected

PATH = "/v1/responses"
QUESTION = "What is the weather in Paris?"
ASK = {"model": MODEL, "input": QUESTION}
WEATHER = {
    "type": "function",
    "name": "get_weather",
    "description": "The weather in a city",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
        "additionalProperties": False,
    },
    "strict": True,
}
PATCH = {
    "type": "custom",
    "name": "apply_patch",
    "format": {"type": "grammar", "syntax": "lark", "definition": "start: /x/"},
}

REQUESTS = {
    "text": ({}, ["message"]),
    "instructions": ({"instructions": "Be brief."}, ["message"]),
    "thoughts": ({"reasoning": {"effort": "high", "summary": "auto"}}, ["reasoning", "message"]),
    "a call": ({"tools": [WEATHER], "tool_choice": "required"}, ["function_call"]),
    "a custom call": ({"tools": [PATCH], "tool_choice": {"type": "custom", "name": "apply_patch"}},
        ["custom_tool_call"]),
    "JSON": (
        {"text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": "object"}}}},
        ["message"],
    ),
}  # fmt: skip


async def stream(w, body):
    """Return (status, text) of a streamed response."""
    raw = json.dumps({**body, "stream": True}).encode()
    async with w.client.request(
        "POST", PATH, headers=[(b"content-type", b"application/json")], body=raw
    ) as response:
        return response.status, (await response.read()).decode()


@pytest.mark.parametrize(("extra", "kinds"), REQUESTS.values(), ids=REQUESTS)
async def test_streamed_and_whole(extra, kinds):
    """A response, streamed or whole, matches OpenAI's types and is the same."""
    async with world() as w:
        status, _, whole = await w.post(ASK | extra, PATH)
        assert status == 200
        assert [item.type for item in judge(Response, whole).output] == kinds
        status, text = await stream(w, ASK | extra)
        assert status == 200
        last = read(text)[-1]
        assert last["type"] == "response.completed"
        same = ("output", "usage", "status", "tools", "tool_choice", "text", "instructions")
        blank = {whole["id"].removeprefix("resp_"): "", last["response"]["id"].removeprefix("resp_"): ""}
        assert [_without(blank, last["response"][key]) for key in same] == [
            _without(blank, whole[key]) for key in same
        ]
        assert w.sound()


def _without(ids, value):
    text = json.dumps(value)
    for id_, blank in ids.items():
        text = text.replace(id_, blank)
    return text


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
async def test_recorded(path):
    """The recorded streams arrive as matching items; a failed one keeps the output so far."""
    functions: list = [tool["function"] for tool in TOOLS]
    tools = [{"type": "function", **function} for function in functions]
    meaning = expected(path)
    async with world() as w:
        w.emulator.script(ScriptedReply((path.read_bytes(),)))
        _, text = await stream(w, ASK | {"tools": tools})
        events = read(text)
        last = events[-2 if "failed" in meaning else -1]
        status = (
            "failed"
            if "failed" in meaning
            else "incomplete"
            if meaning["reason"] == "length"
            else "completed"
        )
        assert last["type"] == f"response.{status}"
        output = last["response"]["output"]
        parts = [part for item in output for part in item.get("content", ())]
        assert "".join(part["text"] for part in parts) == meaning["text"]
        thoughts = [part for item in output for part in item.get("summary", ())]
        assert "".join(part["text"] for part in thoughts) == meaning["thought"]
        calls = [[item["name"], item["arguments"]] for item in output if item["type"] == "function_call"]
        assert calls == meaning["calls"]
        if status != "failed":
            w.emulator.script(ScriptedReply((path.read_bytes(),)))
            _, _, whole = await w.post(ASK | {"tools": tools}, PATH)
            assert judge(Response, whole).status == status
            assert [item["type"] for item in whole["output"]] == [item["type"] for item in output]


REFUSED = {
    "no model": ({"input": "hi", "model": None}, 400, "missing_required_parameter"),
    "unknown model": ({**ASK, "model": "nope"}, 404, "model_not_found"),
    "a limit": ({**ASK, "model": "fault-429"}, 429, "rate_limit_exceeded"),
    "background without a store": ({**ASK, "background": True, "store": False}, 400, "invalid_value"),
}


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(("body", "status", "code"), REFUSED.values(), ids=REFUSED)
async def test_rejections(body, status, code, streamed):
    """A failure before the first event is JSON with an error status, even for a stream."""
    async with world() as w:
        received, _, answer = await w.post({**body, "stream": streamed}, PATH)
        assert (received, answer["error"]["code"]) == (status, code)
        refusal(answer)


async def test_ignored_parameters_are_named():
    """Parameters that agents send to every server are no error, and a header names them."""
    body = {
        **ASK,
        "input": [{"type": "web_search_call", "id": "ws_1"}, {"role": "user", "content": "hi"}],
        "tools": [{"type": "web_search"}, {"type": "file_search", "vector_store_ids": ["v"]}],
        "client_metadata": {"a": "b"},
    }
    async with world() as w:
        status, head, _ = await w.post(body, PATH)
    assert status == 200
    assert head["x-qproxy-ignored-params"] == "client_metadata, input[0], tools[1]"


async def request(w, method, path, headers=()):
    """Return (status, body) of a request without a body."""
    async with w.client.request(method, PATH + path, headers=headers) as response:
        return response.status, json.loads(await response.read())


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_conversation_continues(streamed):
    """previous_response_id restores the whole conversation, but not its instructions."""
    async with world() as w:
        first, last = await create(w, ASK | {"instructions": "Be brief.", "tools": [WEATHER]}, streamed), None
        call = first["output"][0]
        result = {"type": "function_call_output", "call_id": call["call_id"], "output": "17 degrees"}
        last = await create(w, ASK | {"input": [result], "previous_response_id": first["id"]}, streamed)
        assert "The tool says: 17 degrees" in last["output"][0]["content"][0]["text"]
        assert last["previous_response_id"] == first["id"]
        sent = w.emulator.requests[-1].body["messages"]
        assert [message["role"] for message in sent] == ["user", "assistant", "tool"]
        status, listing = await request(w, "GET", f"/{last['id']}/input_items?order=asc")
        assert status == 200
        assert [item["type"] for item in listing["data"]] == [
            "message",
            "function_call",
            "function_call_output",
        ]
        judge(ResponseItemList, listing)
        await request(w, "DELETE", f"/{first['id']}")
        status, listing = await request(w, "GET", f"/{last['id']}/input_items")
        assert (status, len(listing["data"])) == (200, 1)


async def create(w, body, streamed=False):
    """Return the completed response."""
    if not streamed:
        status, _, body = await w.post(body, PATH)
        assert status == 200, body
        return body
    status, text = await stream(w, body)
    assert status == 200
    return read(text)[-1]["response"]


async def test_references():
    """An item of a stored response can be sent by its id alone."""
    async with world() as w:
        first = await create(w, ASK)
        reference = {"type": "item_reference", "id": first["output"][0]["id"]}
        await create(w, ASK | {"input": [reference, {"role": "user", "content": "And now?"}]})
        sent = w.emulator.requests[-1].body["messages"]
        assert [message["role"] for message in sent] == ["assistant", "user"]
        reference["id"] = first["output"][0]["id"][:-1] + "9"
        status, _, body = await w.post(ASK | {"input": [reference]}, PATH)
        assert (status, body["error"]["param"]) == (404, "input")


async def test_a_stored_response_can_be_read_and_deleted():
    """GET returns the response as it was; after DELETE, and for store: false, it returns 404."""
    async with world() as w:
        first = await create(w, ASK | {"metadata": {"a": "b"}})
        assert await request(w, "GET", f"/{first['id']}") == (200, first)
        status, body = await request(w, "POST", f"/{first['id']}/cancel")
        assert (status, body["error"]["message"]) == (400, "Cannot cancel a synchronous response.")
        status, body = await request(w, "GET", f"/{first['id']}?stream=true")
        assert (status, body["error"]["param"]) == (400, "stream")
        assert await request(w, "DELETE", f"/{first['id']}") == (
            200,
            {"id": first["id"], "object": "response", "deleted": True},
        )
        second = await create(w, ASK | {"store": False})
        assert second["store"] is False
        for id_ in (first["id"], second["id"], "resp_1"):
            await expect_not_found(w, id_)


def statistics(w):
    assert w.server.state.responses is not None
    return w.server.state.responses.statistics()


async def expect_not_found(w, id_, headers=()):
    """Check that every request for the response returns not found."""
    for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/input_items"), ("POST", "/cancel")):
        status, body = await request(w, method, f"/{id_}{path}", headers)
        refusal(body)
        assert (status, body["error"]["message"]) == (404, f"Response with id '{id_}' not found.")
    status, _, body = await w.post(ASK | {"previous_response_id": id_}, PATH, headers)
    assert (status, body["error"]["code"]) == (400, "previous_response_not_found")
    assert body["error"]["param"] == "previous_response_id"


async def test_responses_belong_to_their_key():
    """For another key a response does not exist."""
    own_headers, other_headers = ([(b"authorization", b"Bearer " + key)] for key in (b"sk-mine", b"sk-yours"))
    async with world(api_keys=["sk-mine", "sk-yours"]) as w:
        _, _, first = await w.post(ASK, PATH, own_headers)
        assert (await request(w, "GET", f"/{first['id']}", own_headers))[0] == 200
        await expect_not_found(w, first["id"], other_headers)
        reference = {"type": "item_reference", "id": first["output"][0]["id"]}
        status, _, _ = await w.post(ASK | {"input": [reference]}, PATH, other_headers)
        assert status == 404


async def test_a_server_without_a_store():
    """store_responses = false keeps nothing, and the responses report it."""
    async with world(store_responses=False) as w:
        first = await create(w, ASK | {"store": True})
        assert first["store"] is False
        status, body = await request(w, "GET", f"/{first['id']}")
        assert status == 404
        status, _, body = await w.post(ASK | {"previous_response_id": first["id"]}, PATH)
        assert (status, body["error"]["code"]) == (400, "previous_response_not_found")
        assert "stores no responses" in body["error"]["message"]


async def test_a_store_that_fails_does_not_fail_the_response(tmp_path, caplog):
    """A response is sent, streamed or whole, even if the store fails; that is logged without its text, and
    counted."""
    (tmp_path / "responses.sqlite3").mkdir()
    async with world(responses_file=str(tmp_path / "responses.sqlite3")) as w:
        for streamed in (False, True):
            first = await create(w, ASK, streamed)
        status, body = await request(w, "GET", f"/{first['id']}")
        assert (status, body["error"]["code"]) == (503, "store_unavailable")
        assert statistics(w).failed == 3
    messages = [record.getMessage() for record in caplog.records if record.name == "qproxy.server"]
    assert len(messages) == 2
    assert all("its response is not kept" in line and "Paris" not in line for line in messages)


async def test_a_restart_keeps_conversations(tmp_path):
    """Another server with the same file continues the conversation."""
    settings = {"responses_file": str(tmp_path / "responses.sqlite3")}
    async with world(**settings) as w:
        first = await create(w, ASK)
    async with world(**settings) as w:
        await create(w, ASK | {"previous_response_id": first["id"]})
        assert len(w.emulator.requests[-1].body["messages"]) == 3


async def test_a_reload_keeps_the_store():
    """A reload replaces the store only if its settings change."""
    before = Config(accounts=accounts("one"))
    server = build_server(before)
    store = server.state.responses

    async def reload(**settings):
        await server.reconfigure(rebuild_state(replace(before, **settings), before, server.state))
        return server.state.responses

    assert await reload(default_model=MODEL) is store
    other = await reload(store_timeout=1.0)
    assert other is not None
    assert other is not store
    assert await reload(store_responses=False) is None


async def test_a_response_that_failed_is_not_kept():
    """A failed response cannot be continued."""
    async with world() as w:
        _, text = await stream(w, {**ASK, "model": "fault-cut"})
        await expect_not_found(w, read(text)[0]["response"]["id"])
        assert statistics(w).saved == 0


async def test_a_disconnect_cancels_the_response():
    """A client that disconnects in mid-response frees everything; the response is kept as cancelled, and
    cannot be continued."""
    async with world() as w:
        body = json.dumps({**ASK, "model": "fault-hang", "stream": True}).encode()
        async with w.client.request(
            "POST", PATH, headers=[(b"content-type", b"application/json")], body=body
        ) as response:
            id_ = read((await response.receive()).decode())[0]["response"]["id"]
        with trio.fail_after(0.1):
            await w.emulator.requests[-1].disconnected.wait()
        assert w.sound()
        _, started = await w.get(f"{PATH}/{id_}")
        assert judge(Response, started).status == "cancelled"
        status, _, body = await w.post(ASK | {"previous_response_id": id_}, PATH)
        assert (status, body["error"]["code"]) == (400, "previous_response_not_found")


async def test_a_failure_in_mid_response():
    """A truncated stream ends with response.failed and error; a whole response is a 502."""
    async with world() as w:
        status, text = await stream(w, {**ASK, "model": "fault-cut"})
        assert status == 200
        assert [event["type"] for event in read(text)[-2:]] == ["response.failed", "error"]
        assert (await w.post({**ASK, "model": "fault-cut"}, PATH))[0] == 502
        assert w.sound()


async def test_the_official_client():
    """create, stream and parse work as with OpenAI's API."""

    class City(BaseModel):
        name: str
        people: int

    def streamed(client):
        with client.responses.stream(model=MODEL, input=QUESTION, tools=[WEATHER]) as events:
            kinds = [event.type for event in events]
            return kinds, events.get_final_response()

    async with sdk() as (client, _):
        answer = await run(client.responses.create, **ASK)
        assert "You said" in answer.output_text
        assert answer.usage.total_tokens > 0
        kinds, final = await run(streamed, client)
        assert kinds[0] == "response.created"
        assert kinds[-1] == "response.completed"
        assert json.loads(final.output[0].arguments) == {"city": "Paris"}
        answer = await run(client.responses.parse, **ASK, text_format=City)
        assert isinstance(answer.output_parsed, City)
        again = await run(client.responses.retrieve, answer.id)
        assert again.output_text == answer.output_text
        items = await run(lambda: list(client.responses.input_items.list(answer.id, limit=1)))
        assert [item.content[0].text for item in items] == [QUESTION]
        with pytest.raises(openai.BadRequestError, match="synchronous"):
            await run(client.responses.cancel, answer.id)
        await run(client.responses.delete, answer.id)
        with pytest.raises(openai.NotFoundError):
            await run(client.responses.retrieve, answer.id)


async def test_a_cut_stream_raises():
    """A truncated stream raises APIError after the failed response."""
    seen = []

    def read_it(client):
        for event in client.responses.create(model="fault-cut", input=QUESTION, stream=True):
            seen.append(event.type)

    async with sdk() as (client, _):
        with pytest.raises(openai.APIError, match="before the response was complete"):
            await run(read_it, client)
    assert seen[-1] == "response.failed"


async def test_closing_a_stream_frees_the_upstream():
    """Closing a stream half-way closes the upstream connection."""

    def read_one_event(client):
        with client.responses.create(model="fault-hang", input=QUESTION, stream=True) as events:
            next(iter(events))

    async with sdk() as (client, emulator):
        await run(read_one_event, client)
        with trio.fail_after(5):
            await emulator.requests[-1].disconnected.wait()
