"""The Responses API through the server: in memory, and with the official client over real sockets."""

import json

import openai
import pytest
import trio
from openai.types.responses import Response
from pydantic import BaseModel

from tests.helpers import MODEL, world
from tests.sdk_judge import judge, refusal
from tests.test_sdk import run, sdk
from tests.wire.endpoints.responses.test_answer import read

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
    "a custom call": ({"tools": [PATCH], "tool_choice": {"type": "custom", "name": "apply_patch"}}, ["custom_tool_call"]),
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
        "tools": [{"type": "web_search"}, {"type": "namespace", "name": "n", "tools": []}],
        "client_metadata": {"a": "b"},
    }
    async with world() as w:
        status, head, _ = await w.post(body, PATH)
    assert status == 200
    assert head["x-qproxy-ignored-params"] == "client_metadata, input[0], tools[0], tools[1]"


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


async def test_a_cut_stream_raises():
    """A stream that breaks off raises APIError, after the response that failed."""
    seen = []

    def read_it(client):
        for event in client.responses.create(model="fault-cut", input=QUESTION, stream=True):
            seen.append(event.type)

    async with sdk() as (client, _):
        with pytest.raises(openai.APIError, match="broke its answer off"):
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
            await emulator.requests[-1].left.wait()
