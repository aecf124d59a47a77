"""The official Anthropic client works against qproxy over real sockets."""

import json
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import anthropic
import pytest
import trio

import qproxy
from qproxy.config import Config
from qproxy.config.accounts import AccountConfig
from qproxy.emulator import Emulator, ScriptedReply
from qproxy.wire.endpoints.anthropic.message import STOP_REASONS
from tests.helpers import MODEL
from tests.integration.test_openai_sdk import run
from tests.wire.pipeline import cut
from tests.wire.test_recorded_streams import FILES, TOOLS, expected

WEATHER: Any = {
    "name": "get_weather",
    "description": "The weather in a city",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
QUESTION: Any = [{"role": "user", "content": "What is the weather in Paris?"}]
FUNCTIONS: Any = [tool["function"] for tool in TOOLS]
DECLARED: Any = [{"name": one["name"], "input_schema": one["parameters"]} for one in FUNCTIONS]


@asynccontextmanager
async def sdk():
    """Return an Anthropic client of a qproxy that serves an emulator; its calls run in a thread."""
    emulator = Emulator()
    async with trio.open_nursery() as nursery:
        await nursery.start(emulator.serve)
        config = Config(
            port=0, accounts=(AccountConfig("emu", base_url=emulator.base_url, key="sk-test-key"),)
        )
        urls = await nursery.start(partial(qproxy.serve, config))
        with anthropic.Anthropic(base_url=urls[0], api_key="any", max_retries=0) as client:
            yield client, emulator
        nursery.cancel_scope.cancel()


async def test_whole_count_and_models():
    """create, count_tokens and models.list work as with Anthropic's API."""
    async with sdk() as (client, _):
        answer = await run(client.messages.create, model=MODEL, max_tokens=100, messages=QUESTION)
        assert "You said" in answer.content[-1].text
        assert answer._request_id.startswith("req_")
        counted = await run(client.messages.count_tokens, model=MODEL, messages=QUESTION, tools=[WEATHER])
        assert 20 <= counted.input_tokens <= 80
        models = await run(lambda: list(client.models.list(limit=2)))
        assert MODEL in [model.id for model in models]
        assert (await run(client.models.retrieve, MODEL)).display_name == MODEL


async def test_a_tool_loop():
    """The stream helper accumulates a call; the request accepts its result and the thinking block before
    it."""

    def stream(client, messages, **more):
        with client.messages.stream(
            model=MODEL,
            max_tokens=4000,
            messages=messages,
            tools=[WEATHER],
            thinking={"type": "enabled", "budget_tokens": 1024},
            **more,
        ) as events:
            kinds = [event.type for event in events]
            return kinds, events.get_final_message()

    async with sdk() as (client, _):
        kinds, first = await run(stream, client, QUESTION)
        assert kinds[0] == "message_start"
        assert kinds[-1] == "message_stop"
        thought, call = first.content[0], first.content[-1]
        assert thought.type == "thinking"
        assert thought.signature
        assert (call.type, call.name, call.input) == ("tool_use", "get_weather", {"city": "Paris"})
        assert first.stop_reason == "tool_use"
        history = [
            *QUESTION,
            {"role": "assistant", "content": [block.to_dict() for block in first.content]},
            {
                "role": "user",
                "content": [{"type": "tool_result", "tool_use_id": call.id, "content": "sunny"}],
            },
        ]
        _, second = await run(stream, client, history)
        assert "sunny" in second.content[-1].text
        assert second.stop_reason == "end_turn"
        assert second.usage.output_tokens > 0


async def test_recorded_streams_accumulate():
    """The client's accumulator turns every recorded stream, cut at odd positions, into the expected
    message."""

    def streamed(client):
        with client.messages.stream(model=MODEL, max_tokens=100, messages=QUESTION, tools=DECLARED) as stream:
            stream.until_done()
            return stream.get_final_message()

    def whole(client):
        return client.messages.create(model=MODEL, max_tokens=100, messages=QUESTION, tools=DECLARED)

    async with sdk() as (client, emulator):
        for path in FILES:
            meaning = expected(path)
            if meaning["reason"] not in ("stop", "tool_calls"):
                continue
            raw = path.read_bytes()
            for send in (streamed, whole):
                emulator.script(ScriptedReply(tuple(cut(raw, range(61, len(raw), 211)))))
                message = await run(send, client)
                calls = [block for block in message.content if block.type == "tool_use"]
                expected_calls = [(name, json.loads(arguments)) for name, arguments in meaning["calls"]]
                assert [(call.name, call.input) for call in calls] == expected_calls, path
                assert message.stop_reason == STOP_REASONS[meaning["reason"]], path
                texts = [block.text for block in message.content if block.type == "text"]
                assert "".join(texts) == meaning["text"], path


ERRORS = {
    "fault-429": anthropic.RateLimitError,
    "fault-500": anthropic.InternalServerError,
    "nothing": anthropic.NotFoundError,
}


@pytest.mark.parametrize(("model", "kind"), ERRORS.items())
async def test_errors(model, kind):
    """An error raises the client's matching exception, with the request's id."""
    async with sdk() as (client, _):
        with pytest.raises(kind) as caught:
            await run(client.messages.create, model=model, max_tokens=5, messages=QUESTION)
        assert caught.value.body["type"] == "error"
        assert caught.value.request_id == caught.value.body["request_id"]


async def test_a_broken_stream():
    """A stream that the upstream truncates raises an error instead of ending normally."""

    def stream(client):
        with client.messages.stream(model=MODEL, max_tokens=100, messages=QUESTION) as events:
            return events.get_final_message()

    async with sdk() as (client, emulator):
        raw = next(path for path in FILES if path.stem == "cut-without-done").read_bytes()
        emulator.script(ScriptedReply((raw,)))
        with pytest.raises(anthropic.APIStatusError) as caught:
            await run(stream, client)
        body: Any = caught.value.body
        assert body["error"]["type"] == "api_error"
