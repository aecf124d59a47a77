"""Each API and dialect supports Qwen4's features: efforts, cache, usage, tools, and OpenAI's SDK.

docs/qwen4.md names these tests.
"""

import json
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import openai
import pytest

from qproxy import tools
from qproxy.emulator import Emulator
from qproxy.emulator.unverified import Unverified
from tests.helpers import accounts, world
from tests.relay.test_tool_loop import calling
from tests.server.test_in_process import sdk

MODEL = "qwen4-max"
TURNS = 5
DIALECTS = pytest.mark.parametrize("dialect", ["compatible", "dashscope"])
WORDS = ("none", "off", "minimal", "low", "medium", "high", "xhigh", "max")
PATHS = {"chat": "/v1/chat/completions", "responses": "/v1/responses", "messages": "/v1/messages"}
APIS = pytest.mark.parametrize("api", PATHS)
WEATHER = {
    "name": "weather",
    "description": "The weather in a city.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


def body_of(api, content, **fields):
    """Return a request of one user message."""
    name = "input" if api == "responses" else "messages"
    more = {"max_tokens": 2000} if api == "messages" else {}
    return {"model": MODEL, name: [{"role": "user", "content": content}], **more, **fields}


def sent(it, number=-1):
    """Return the parameters and messages that the upstream received."""
    body = [seen.body for seen in it.emulator.requests if seen.method == "POST"][number]
    if "parameters" in body:
        return {**body["parameters"], "messages": body["input"]["messages"]}
    return body


EFFORTS = {
    "chat": lambda word: {"reasoning_effort": word},
    "responses": lambda word: {"reasoning": {"effort": word}},
    "messages": lambda word: {"output_config": {"effort": word}},
}


@DIALECTS
@APIS
async def test_efforts_reach_qwen4_as_they_are(api, dialect):
    """Every effort of the API passes unchanged, without a contradicting parameter."""
    words = WORDS[3:] if api == "messages" else WORDS
    async with world(accounts=accounts("one", dialect=dialect)) as it:
        for word in words:
            status, _, answer = await it.post(body_of(api, "Hi", **EFFORTS[api](word)), PATHS[api])
            assert status == 200, answer
            assert sent(it)["reasoning_effort"] == word
            assert not {"thinking_budget", "enable_thinking"} & sent(it).keys()


@DIALECTS
@APIS
async def test_an_effort_goes_without_a_budget(api, dialect):
    """Qwen4 rejects a budget beside an effort, so the budget is left out and named."""
    fields = {"thinking_budget": 100, **EFFORTS[api]("high")}
    async with world(accounts=accounts("one", dialect=dialect)) as it:
        status, headers, answer = await it.post(body_of(api, "Hi", **fields), PATHS[api])
        assert status == 200, answer
        assert (sent(it)["reasoning_effort"], "thinking_budget" in sent(it)) == ("high", False)
        assert "thinking_budget" in headers.get("x-qproxy-ignored-params", "")


LONG = "word " * 1100
PART = {"prompt_cache_breakpoint": {"mode": "explicit"}}
OPTIONS = {"prompt_cache_options": {"mode": "explicit", "ttl": "30m"}}
CACHED = {
    "chat": ([{"type": "text", "text": LONG, **PART}, {"type": "text", "text": "and?"}], OPTIONS),
    "responses": (
        [{"type": "input_text", "text": LONG, **PART}, {"type": "input_text", "text": "and?"}],
        OPTIONS,
    ),
    "messages": (
        [
            {"type": "text", "text": LONG, "cache_control": {"type": "ephemeral"}},
            {"type": "text", "text": "?"},
        ],
        {},
    ),
}
COUNTS = {
    "chat": lambda usage: [
        usage["prompt_tokens_details"].get(name, 0) for name in ("cached_tokens", "cache_write_tokens")
    ],
    "responses": lambda usage: [
        usage["input_tokens_details"][name] for name in ("cached_tokens", "cache_write_tokens")
    ],
    "messages": lambda usage: [usage[f"cache_{name}_input_tokens"] for name in ("read", "creation")],
}


@DIALECTS
@APIS
async def test_cache_breakpoints_and_usage_of_every_api(api, dialect):
    """The first request writes the marked prefix and the second reads it; usage reports both."""
    content, options = CACHED[api]
    async with world(accounts=accounts("one", dialect=dialect)) as it:
        answers = [(await it.post(body_of(api, content, **options), PATHS[api]))[2] for _ in range(2)]
        found = [COUNTS[api](answer["usage"]) for answer in answers]
        assert found == [[0, 1104], [1104, 0]]
        assert "cache_control" in json.dumps(sent(it)) or "prompt_cache_breakpoint" in json.dumps(sent(it))
        if options:
            assert sent(it)["prompt_cache_options"] == {"mode": "explicit", "ttl": "1h"}


async def test_the_mapping_of_times_to_live_is_a_rule():
    """With the rule off, OpenAI's value is sent unchanged, and the rejection that names it is learned."""
    content, options = CACHED["chat"]
    async with world(rules={"cache_ttl": False}) as it:
        status, _, _ = await it.post(body_of("chat", content, **options))
        assert status == 200
        assert sent(it, -2)["prompt_cache_options"]["ttl"] == "30m"
        assert "ttl" not in sent(it)["prompt_cache_options"]


async def test_a_cache_breakpoint_of_a_tool_result_stays():
    """A breakpoint in a tool result, which becomes one text, stays on that text."""
    call = {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": "{}"}
    output = [{"type": "input_text", "text": "sunny", **PART}]
    items = [call, {"type": "function_call_output", "call_id": "c1", "output": output}]
    async with world() as it:
        body = body_of("responses", "Hi")
        status, _, answer = await it.post({**body, "input": [*body["input"], *items]}, PATHS["responses"])
        assert status == 200, answer
        assert sent(it)["messages"][-1]["content"] == [{"type": "text", "text": "sunny", **PART}]


FORCED: dict[str, dict[str, Any]] = {
    "chat": {"tools": [{"type": "function", "function": WEATHER}], "tool_choice": "required"},
    "responses": {"tools": [{"type": "function", **WEATHER}], "tool_choice": "required"},
    "messages": {
        "tools": [{"name": "weather", "input_schema": WEATHER["parameters"]}],
        "tool_choice": {"type": "any"},
    },
}
CALLED = {
    "chat": lambda answer: answer["choices"][0]["message"]["tool_calls"],
    "responses": lambda answer: [item for item in answer["output"] if item["type"] == "function_call"],
    "messages": lambda answer: [block for block in answer["content"] if block["type"] == "tool_use"],
}


@DIALECTS
@APIS
async def test_a_rejected_forced_tool_is_learned_once(api, dialect):
    """A forced tool is sent as requested; a rejection while thinking is remembered."""
    emulator = Emulator(facts=Unverified(forced_tool_while_thinking=False))
    body = body_of(api, "Hi", **FORCED[api], **EFFORTS[api]("high"))
    async with world(emulator=emulator, accounts=accounts("one", dialect=dialect)) as it:
        for count in (2, 3):
            status, headers, answer = await it.post(body, PATHS[api])
            assert (status, len(emulator.requests)) == (200, count), answer
            assert CALLED[api](answer)
            assert "thinking off" in headers["x-qproxy-notes"]
        assert (sent(it, 0)["reasoning_effort"], sent(it, 0)["tool_choice"]) == ("high", "required")
        assert (sent(it)["enable_thinking"], sent(it)["tool_choice"]) == (False, "required")


@pytest.mark.parametrize(
    ("facts", "fields", "name"),
    [
        (Unverified(budget=False), {"thinking_budget": 100}, "thinking_budget"),
        (Unverified(cache_ttls="300s 3600s"), OPTIONS, "prompt_cache_options"),
    ],
    ids=["a budget", "a time to live"],
)
async def test_a_parameter_changed_after_a_rejection_is_named(facts, fields, name):
    """A parameter that the upstream rejects is amended once, and a header names it."""
    async with world(emulator=Emulator(facts=facts)) as it:
        status, headers, answer = await it.post(body_of("chat", "Hi", **fields))
        assert status == 200, answer
        assert headers["x-qproxy-notes"] == f"changed after the upstream refused it: {name}"


def ciphertexts(it):
    """Return the ciphertext of each assistant message in the last upstream request, None without one."""
    return [m.get("encrypted_content") for m in sent(it)["messages"] if m["role"] == "assistant"]


def declared(api):
    nested = {"type": "function", "function": WEATHER}
    return [nested] if api == "chat" else [{"type": "function", **WEATHER}]


@asynccontextmanager
async def served(dialect):
    async with world(accounts=accounts("one", dialect=dialect)) as it, sdk(it, httpx2) as client:
        yield it, client


@DIALECTS
async def test_the_sdk_keeps_reasoning_in_chat(dialect):
    """Over five turns with tools, a client that sends only known fields keeps all reasoning."""
    history: list = []
    async with served(dialect) as (it, client):

        async def ask():
            answer = await client.chat.completions.create(
                model=MODEL,
                messages=history,
                tools=declared("chat"),
                extra_body={"thinking_display": "summarized"},
            )
            message = answer.choices[0].message
            fields = openai.types.chat.ChatCompletionMessage.model_fields
            known = message.model_dump(exclude_none=True, include=set(fields))
            history.append(known)
            return message

        for number in range(TURNS):
            history.append({"role": "user", "content": f"What is the weather in city {number}?"})
            call = (await ask()).tool_calls[0]
            history.append({"role": "tool", "tool_call_id": call.id, "content": "sunny"})
            assert "sunny" in (await ask()).content
        assert not any("encrypted_content" in message for message in history)
        assert len(ciphertexts(it)) == 2 * TURNS - 1
        assert None not in ciphertexts(it)
        assert len(set(ciphertexts(it))) == TURNS
        assert sent(it)["preserve_thinking"] is True


@DIALECTS
@pytest.mark.parametrize("way", ["items", "calls and texts alone", "previous_response_id"])
async def test_the_sdk_keeps_reasoning_in_responses(dialect, way):
    """Reasoning survives five turns with tools: via reasoning items, without them, and via the stored
    response."""
    history: list = []
    previous = openai.omit
    async with served(dialect) as (it, client):

        async def ask(*new):
            nonlocal previous
            history.extend(new)
            answer = await client.responses.create(
                model=MODEL,
                input=list(new) if way == "previous_response_id" else history,
                previous_response_id=previous,
                tools=declared("responses"),
                reasoning={"summary": "auto"},
                store=way != "items",
            )
            kept = [item for item in answer.output if way == "items" or item.type != "reasoning"]
            history.extend(item.model_dump(exclude_none=True) for item in kept)
            previous = answer.id if way == "previous_response_id" else openai.omit
            return answer

        for number in range(TURNS):
            question = {"role": "user", "content": f"What is the weather in city {number}?"}
            (call,) = [item for item in (await ask(question)).output if item.type == "function_call"]
            output = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
            answer = await ask(output)
            assert "sunny" in answer.output_text
            assert answer.output[0].type == "reasoning"
            assert answer.output[0].summary[0].text.startswith("Summary")
        assert len(ciphertexts(it)) == 2 * TURNS - 1
        assert None not in ciphertexts(it)


@tools.function
async def lookup(city: str) -> str:
    """Look up the weather in a city."""
    return f"sunny in {city}"


@pytest.mark.parametrize("api", ["chat", "messages"])
async def test_reasoning_of_hidden_rounds_is_kept(api):
    """A response with rounds of server tools is one message, which gets its last ciphertext back."""
    async with world(functions=[lookup]) as it:
        display = {"thinking": {"type": "adaptive", "display": "summarized"}}
        fields = display if api == "messages" else {"thinking_display": "summarized"}
        body = body_of(api, "Look up the weather in Paris", **fields)
        status, _, answer = await it.post(body, PATHS[api])
        assert status == 200, answer
        assert len(ciphertexts(it)) == 1
        text = answer["choices"][0]["message"]["content"] if api == "chat" else answer["content"][-1]["text"]
        more = [{"role": "assistant", "content": text}, {"role": "user", "content": "thanks"}]
        status, _, answer = await it.post({**body, "messages": [*body["messages"], *more]}, PATHS[api])
        assert status == 200, answer
        assert None not in ciphertexts(it)


async def test_a_message_has_the_reasoning_of_each_round():
    """In Messages each round has its own signed thinking block, and the text is the last block."""
    async with world(functions=[lookup]) as it:
        thinking = {"thinking": {"type": "adaptive", "display": "summarized"}}
        body = body_of("messages", "Look up the weather in Paris", **thinking)
        status, _, answer = await it.post(body, PATHS["messages"])
        assert status == 200, answer
        assert [block["type"] for block in answer["content"]] == ["thinking", "thinking", "text"]
        more = [{"role": "assistant", "content": answer["content"]}, {"role": "user", "content": "thanks"}]
        status, _, answer = await it.post({**body, "messages": [*body["messages"], *more]}, PATHS["messages"])
        assert status == 200, answer
        assert None not in ciphertexts(it)


async def test_hidden_rounds_of_a_request_that_must_not_be_stored_are_not_kept():
    """With `store: false` nothing of a response stays, neither its ciphertext nor the hidden rounds."""
    both = [{"type": "function", "function": WEATHER}]
    fields = {"thinking_display": "summarized", "store": False, "tools": both}
    async with world(functions=[lookup]) as it:
        it.emulator.script(calling(("lookup", {"city": "Paris"})), calling(("weather", {"city": "Paris"})))
        status, _, answer = await it.post(body_of("chat", "Both please", **fields))
        assert status == 200, answer
        stores = [it.server.state.tool_runtime.rounds, it.server.state.relay.reasoning]
        assert all(store is not None and store.is_empty for store in stores)


async def test_each_round_of_responses_has_its_own_ciphertext():
    """A Responses client gets each round of server tools as separate items, with the round's own
    reasoning."""
    async with world(functions=[lookup]) as it:
        fields = {"reasoning": {"summary": "auto"}, "store": False}
        body = body_of("responses", "Look up the weather in Paris", **fields)
        status, _, answer = await it.post(body, PATHS["responses"])
        assert status == 200, answer
        kinds = [item["type"] for item in answer["output"]]
        assert kinds == ["reasoning", "mcp_call", "reasoning", "message"]
        sealed = [item["encrypted_content"] for item in answer["output"] if item["type"] == "reasoning"]
        more = [*answer["output"], {"role": "user", "content": "thanks"}]
        status, _, answer = await it.post({**body, "input": [*body["input"], *more]}, PATHS["responses"])
        assert status == 200, answer
        assert ciphertexts(it)[:2] == sealed
