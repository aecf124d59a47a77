"""The Responses API through the server: in memory, and with the official client over real sockets."""

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

ASKED = {
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
    """(status, text) of a streamed response."""
    raw = json.dumps({**body, "stream": True}).encode()
    async with w.client.request(
        "POST", PATH, headers=[(b"content-type", b"application/json")], body=raw
    ) as response:
        return response.status, (await response.read()).decode()


@pytest.mark.parametrize(("extra", "kinds"), ASKED.values(), ids=ASKED)
async def test_streamed_and_whole(extra, kinds):
    """Streamed or whole, a response is what OpenAI's types demand, and the same."""
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
    """The recorded streams arrive as items that say what the files say; one that fails says what had come."""
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
    "background": ({**ASK, "background": True}, 400, "unsupported_parameter"),
}


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(("body", "status", "code"), REFUSED.values(), ids=REFUSED)
async def test_refusals(body, status, code, streamed):
    """What fails before the first event is JSON with its true status, also when a stream was asked for."""
    async with world() as w:
        got, _, answer = await w.post({**body, "stream": streamed}, PATH)
        assert (got, answer["error"]["code"]) == (status, code)
        refusal(answer)


async def test_what_is_left_out_is_named():
    """What an agent sends to everyone is no error, and stands in a header."""
    body = {
        **ASK,
        "input": [{"type": "web_search_call", "id": "ws_1"}, {"role": "user", "content": "hi"}],
        "tools": [{"type": "web_search"}, {"type": "file_search", "vector_store_ids": ["v"]}],
        "client_metadata": {"a": "b"},
    }
    async with world() as w:
        status, head, _ = await w.post(body, PATH)
    assert status == 200
    assert head["x-qproxy-ignored-params"] == "client_metadata, input[0], tools[0], tools[1]"


async def tell(w, method, path, headers=()):
    """(status, body) of a request without one."""
    async with w.client.request(method, PATH + path, headers=headers) as response:
        return response.status, json.loads(await response.read())


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_conversation_goes_on(streamed):
    """previous_response_id brings back the whole conversation, but not its instructions."""
    async with world() as w:
        first, last = await asked(w, ASK | {"instructions": "Be brief.", "tools": [WEATHER]}, streamed), None
        call = first["output"][0]
        result = {"type": "function_call_output", "call_id": call["call_id"], "output": "17 degrees"}
        last = await asked(w, ASK | {"input": [result], "previous_response_id": first["id"]}, streamed)
        assert "The tool says: 17 degrees" in last["output"][0]["content"][0]["text"]
        assert last["previous_response_id"] == first["id"]
        sent = w.emulator.requests[-1].body["messages"]
        assert [message["role"] for message in sent] == ["user", "assistant", "tool"]
        status, listing = await tell(w, "GET", f"/{last['id']}/input_items?order=asc")
        assert status == 200
        assert [item["type"] for item in listing["data"]] == [
            "message",
            "function_call",
            "function_call_output",
        ]
        judge(ResponseItemList, listing)
        await tell(w, "DELETE", f"/{first['id']}")
        status, listing = await tell(w, "GET", f"/{last['id']}/input_items")
        assert (status, len(listing["data"])) == (200, 1)


async def asked(w, body, streamed=False):
    """The response that has been completed."""
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
        first = await asked(w, ASK)
        reference = {"type": "item_reference", "id": first["output"][0]["id"]}
        await asked(w, ASK | {"input": [reference, {"role": "user", "content": "And now?"}]})
        sent = w.emulator.requests[-1].body["messages"]
        assert [message["role"] for message in sent] == ["assistant", "user"]
        reference["id"] = first["output"][0]["id"][:-1] + "9"
        status, _, body = await w.post(ASK | {"input": [reference]}, PATH)
        assert (status, body["error"]["param"]) == (404, "input")


async def test_what_is_stored_can_be_read_and_deleted():
    """GET gives the response as it was; after DELETE, and for store: false, there is none."""
    async with world() as w:
        first = await asked(w, ASK | {"metadata": {"a": "b"}})
        assert await tell(w, "GET", f"/{first['id']}") == (200, first)
        status, body = await tell(w, "POST", f"/{first['id']}/cancel")
        assert (status, body["error"]["message"]) == (400, "Cannot cancel a synchronous response.")
        status, body = await tell(w, "GET", f"/{first['id']}?stream=true")
        assert (status, body["error"]["param"]) == (400, "stream")
        assert await tell(w, "DELETE", f"/{first['id']}") == (
            200,
            {"id": first["id"], "object": "response", "deleted": True},
        )
        second = await asked(w, ASK | {"store": False})
        assert second["store"] is False
        for id_ in (first["id"], second["id"], "resp_1"):
            await is_gone(w, id_)


def statistics(w):
    assert w.server.state.responses is not None
    return w.server.state.responses.statistics()


async def is_gone(w, id_, headers=()):
    """Whatever one asks about the response, there is none."""
    for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/input_items"), ("POST", "/cancel")):
        status, body = await tell(w, method, f"/{id_}{path}", headers)
        refusal(body)
        assert (status, body["error"]["message"]) == (404, f"Response with id '{id_}' not found.")
    status, _, body = await w.post(ASK | {"previous_response_id": id_}, PATH, headers)
    assert (status, body["error"]["code"]) == (400, "previous_response_not_found")
    assert body["error"]["param"] == "previous_response_id"


async def test_responses_are_their_keys_own():
    """For another key a response does not exist."""
    mine, yours = ([(b"authorization", b"Bearer " + key)] for key in (b"sk-mine", b"sk-yours"))
    async with world(api_keys=["sk-mine", "sk-yours"]) as w:
        _, _, first = await w.post(ASK, PATH, mine)
        assert (await tell(w, "GET", f"/{first['id']}", mine))[0] == 200
        await is_gone(w, first["id"], yours)
        reference = {"type": "item_reference", "id": first["output"][0]["id"]}
        status, _, _ = await w.post(ASK | {"input": [reference]}, PATH, yours)
        assert status == 404


async def test_a_server_without_a_store():
    """store_responses = false keeps nothing, and the responses say so."""
    async with world(store_responses=False) as w:
        first = await asked(w, ASK | {"store": True})
        assert first["store"] is False
        status, body = await tell(w, "GET", f"/{first['id']}")
        assert status == 404
        status, _, body = await w.post(ASK | {"previous_response_id": first["id"]}, PATH)
        assert (status, body["error"]["code"]) == (400, "previous_response_not_found")
        assert "stores no responses" in body["error"]["message"]


async def test_a_store_that_fails_does_not_fail_the_answer(tmp_path, caplog):
    """An answer goes out, streamed or whole, though it cannot be kept; that is logged, without its text, and
    counted."""
    (tmp_path / "responses.sqlite3").mkdir()
    async with world(responses_file=str(tmp_path / "responses.sqlite3")) as w:
        for streamed in (False, True):
            first = await asked(w, ASK, streamed)
        status, body = await tell(w, "GET", f"/{first['id']}")
        assert (status, body["error"]["code"]) == (503, "store_unavailable")
        assert statistics(w).failed == 3
    said = [record.getMessage() for record in caplog.records if record.name == "qproxy.server"]
    assert len(said) == 2
    assert all("its response is not kept" in line and "Paris" not in line for line in said)


async def test_a_restart_keeps_conversations(tmp_path):
    """Another server with the same file goes on with the conversation."""
    settings = {"responses_file": str(tmp_path / "responses.sqlite3")}
    async with world(**settings) as w:
        first = await asked(w, ASK)
    async with world(**settings) as w:
        await asked(w, ASK | {"previous_response_id": first["id"]})
        assert len(w.emulator.requests[-1].body["messages"]) == 3


async def test_a_reload_keeps_the_store():
    """Another configuration takes another store only where it says so."""
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
    """Of a response that broke off nothing can be continued."""
    async with world() as w:
        _, text = await stream(w, {**ASK, "model": "fault-cut"})
        await is_gone(w, read(text)[0]["response"]["id"])
        assert statistics(w).saved == 0


async def test_who_leaves_leaves_nothing():
    """A client that leaves in mid-answer frees everything, and its response is not kept."""
    async with world() as w:
        body = json.dumps({**ASK, "model": "fault-hang", "stream": True}).encode()
        async with w.client.request(
            "POST", PATH, headers=[(b"content-type", b"application/json")], body=body
        ) as response:
            await response.receive()
        with trio.fail_after(0.1):
            await w.emulator.requests[-1].disconnected.wait()
        assert w.sound()
        assert statistics(w).saved == 0


async def test_a_break_in_mid_answer():
    """A stream that breaks says response.failed and error; a whole response is a 502."""
    async with world() as w:
        status, text = await stream(w, {**ASK, "model": "fault-cut"})
        assert status == 200
        assert [event["type"] for event in read(text)[-2:]] == ["response.failed", "error"]
        assert (await w.post({**ASK, "model": "fault-cut"}, PATH))[0] == 502
        assert w.sound()


async def test_the_official_client():
    """create, stream and parse work as at OpenAI."""

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
    """A stream that breaks off raises APIError, after the response that failed."""
    seen = []

    def read_it(client):
        for event in client.responses.create(model="fault-cut", input=QUESTION, stream=True):
            seen.append(event.type)

    async with sdk() as (client, _):
        with pytest.raises(openai.APIError, match="before the response was complete"):
            await run(read_it, client)
    assert seen[-1] == "response.failed"


async def test_leaving_a_stream_frees_the_upstream():
    """Closing a stream half-way closes the connection to the model's server."""

    def leave(client):
        with client.responses.create(model="fault-hang", input=QUESTION, stream=True) as events:
            next(iter(events))

    async with sdk() as (client, emulator):
        await run(leave, client)
        with trio.fail_after(5):
            await emulator.requests[-1].disconnected.wait()
