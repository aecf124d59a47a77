"""The emulator's native DashScope services have the right envelopes, streams, caches and errors over HTTP."""

import json

import pytest
import trio
import trio.testing

from qproxy.emulator import FAULTS, Emulator, chat, native
from qproxy.emulator.errors import ApiError
from qproxy.emulator.faults import SSE
from qproxy.emulator.unverified import Unverified
from tests.helpers import H1Client

TEXT = "/api/v1/services/aigc/text-generation/generation"
MULTIMODAL = "/api/v1/services/aigc/multimodal-generation/generation"
HI = [{"role": "user", "content": "What is up?"}]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
MARKED = {"text": "word " * 1020, "cache_control": {"type": "ephemeral"}}


async def post(emulator, path, model, messages=HI, sse=False, **parameters):
    """Return (status, body) of a native request."""
    body = {"model": model, "input": {"messages": messages}, "parameters": parameters}
    client_end, server_end = trio.testing.memory_stream_pair()
    client = H1Client(client_end)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(emulator.handle, server_end)
        headers = [("x-dashscope-sse", "enable")] if sse else []
        await client.send("POST", path, json.dumps(body).encode(), headers)
        status, data = await client.response()
        await client.aclose()
    return status, data if sse and status == 200 else json.loads(data)


def results(raw):
    """Return the data of a stream's events after checking their framing."""
    found = []
    for number, event in enumerate(raw.decode().strip().split("\n\n"), 1):
        id_, kind, status, data = event.split("\n")
        assert (id_, kind, status) == (f"id:{number}", "event:result", ":HTTP_STATUS/200")
        found.append(json.loads(data.removeprefix("data:")))
    return found


async def test_a_text_model_has_two_formats():
    """The older text format is the default of text models; they also return a message."""
    _, answer = await post(Emulator(), TEXT, "qwen-plus")
    assert answer["output"]["text"].startswith("This is the emulator's qwen-plus.")
    assert (answer["output"]["choices"], answer["output"]["finish_reason"]) == (None, "stop")
    _, message = await post(Emulator(), TEXT, "qwen-plus", result_format="message")
    (choice,) = message["output"]["choices"]
    assert choice["message"] == {"role": "assistant", "content": answer["output"]["text"]}
    assert message["usage"]["total_tokens"] == sum(
        message["usage"][f"{way}put_tokens"] for way in ("in", "out")
    )


async def test_a_multimodal_model_responds_in_parts():
    """A multimodal model accepts an image and responds with a list of parts."""
    content = [{"image": "https://example.com/cat.png"}, {"text": "What is this?"}]
    _, answer = await post(Emulator(), MULTIMODAL, "qwen3.8-max", [{"role": "user", "content": content}])
    (part,) = answer["output"]["choices"][0]["message"]["content"]
    assert part["text"].endswith("You said:  What is this?")


@pytest.mark.parametrize("incremental", [True, False])
async def test_a_stream_adds_up_to_the_whole_response(incremental):
    """Increments add up; otherwise every event has the whole so far; finish_reason is "null" until the
    end."""
    options = {"result_format": "message", "tools": [TOOL]}
    _, whole = await post(Emulator(), TEXT, "qwen-plus", **options)
    _, raw = await post(Emulator(), TEXT, "qwen-plus", sse=True, incremental_output=incremental, **options)
    *before, last = [event["output"]["choices"][0] for event in results(raw)]
    assert {choice["finish_reason"] for choice in before} == {"null"}
    assert last["finish_reason"] == "tool_calls"
    calls = [choice["message"]["tool_calls"][0] for choice in before if "tool_calls" in choice["message"]]
    sent = "".join(call["function"]["arguments"] for call in calls)
    (call,) = whole["output"]["choices"][0]["message"]["tool_calls"]
    assert (sent if incremental else calls[-1]["function"]["arguments"]) == call["function"]["arguments"]
    assert (calls[0]["id"], calls[0]["function"]["name"]) == (call["id"], "f")


@pytest.mark.parametrize("place", ["alone", "next", "finish", "pieces"])
async def test_qwen4_summarizes_its_reasoning_in_every_ciphertext_place(place):
    """Summary and ciphertext come whole and streamed, in the assumed delta."""
    emulator = Emulator(facts=Unverified(ciphertext_delta=place))
    options = {"thinking_display": "summarized", "incremental_output": True}
    _, whole = await post(emulator, MULTIMODAL, "qwen4-max", **options)
    message = whole["output"]["choices"][0]["message"]
    _, raw = await post(emulator, MULTIMODAL, "qwen4-max", sse=True, **options)
    choices = [event["output"]["choices"][0] for event in results(raw)]
    for name in ("reasoning_content", "encrypted_content"):
        assert "".join(choice["message"].get(name, "") for choice in choices) == message[name]
    carriers = [choice for choice in choices if choice["message"].get("encrypted_content")]
    assert len(carriers) == (2 if place == "pieces" else 1)
    assert (carriers[-1]["finish_reason"] == "stop") is (place == "finish")
    assert bool(carriers[-1]["message"]["content"]) is (place == "next")


async def test_a_cache_is_shared_by_both_dialects():
    """A compatible request reads the prefix that a native one wrote, with the same usage details."""
    emulator = Emulator()
    content = [MARKED, {"text": "a"}]
    _, answer = await post(emulator, MULTIMODAL, "qwen4-max", [{"role": "user", "content": content}])
    assert answer["usage"]["prompt_tokens_details"] == {
        "cached_tokens": 0,
        "cache_creation_input_tokens": 1024,
        "cache_creation": {"ephemeral_5m_input_tokens": 1024},
        "cache_type": "ephemeral",
    }
    _, raw = await post(
        emulator,
        MULTIMODAL,
        "qwen4-max",
        [{"role": "user", "content": content}],
        sse=True,
        incremental_output=True,
    )
    assert {event["usage"]["prompt_tokens_details"]["cached_tokens"] for event in results(raw)} == {1024}


async def test_search_results_come_with_their_sources():
    """Every event of a stream has the sources; without a stream a multimodal model rejects a search."""
    options = {"enable_search": True, "search_options": {"enable_source": True}, "incremental_output": True}
    _, raw = await post(Emulator(), MULTIMODAL, "qwen4-max", sse=True, **options)
    assert all(event["output"]["search_info"]["search_results"][0]["url"] for event in results(raw))
    status, rejection = await post(Emulator(), MULTIMODAL, "qwen4-max", **options)
    assert (status, rejection["code"]) == (400, "InvalidParameter")
    assert "Non-streaming mode does not support Web Search" in rejection["message"]


PARTS = [{"role": "user", "content": [{"text": "a"}]}]
REFUSALS = {
    "text model, multimodal service": (MULTIMODAL, "qwen-max", {}, "url error"),
    "multimodal model, text service": (TEXT, "qwen4-max", {}, "url error"),
    "unknown effort": (MULTIMODAL, "qwen4-max", {"reasoning_effort": "huge"}, "must be one of"),
    "thoughts, not in increments": (MULTIMODAL, "qwen4-max", {"sse": True}, 'must be "true"'),
    "parts for a text model": (TEXT, "qwen-max", {"messages": PARTS}, "valid string"),
    "no messages": (TEXT, "qwen-max", {"messages": []}, "too short"),
    "of another shape": (TEXT, "qwen-max", {"messages": 7}, "TypeError"),
}


@pytest.mark.parametrize(("path", "model", "fields", "message"), REFUSALS.values(), ids=REFUSALS)
async def test_rejections_are_native(path, model, fields, message):
    """A rejection has the native body."""
    status, body = await post(Emulator(), path, model, **fields)
    assert (status, body["code"]) == (400, "InvalidParameter")
    assert message in body["message"]


async def test_an_unknown_model_is_not_found():
    """An unknown model has the native error code of a missing model."""
    status, body = await post(Emulator(), TEXT, "gpt")
    assert (status, body["code"]) == (404, "ModelNotFound")


async def test_a_key_is_rejected_natively():
    """A request without a valid key gets the native body with the reason."""
    assert await post(Emulator(keys={"sk-1"}), TEXT, "qwen-plus") == (
        401, {"code": "InvalidApiKey", "message": "Incorrect API key provided.", "request_id": "emu-fault"},
    )  # fmt: skip


EVENTS = [name for name, (_, reply) in FAULTS.items() if reply.content_type == SSE and reply.status]
ERRORS = [
    name
    for name, (_, reply) in FAULTS.items()
    if (reply.status or 200) >= 400 and reply.content_type != "text/html"
]


@pytest.mark.parametrize("name", [*EVENTS, *ERRORS])
async def test_faults_are_native(name):
    """The JSON of a fault has the native form, and invalid data stays invalid."""
    steps = native.translate(FAULTS[name][1]).steps
    data = b"".join(step for step in steps if isinstance(step, bytes))
    assert not any(word in data for word in (b"chat.completion.chunk", b'{"error"', b"[DONE]"))
    assert (b"{oops" in data) is (name == "fault-garbage")


def test_a_prompt_is_a_user_message():
    """`input.prompt` and `input.messages` are equivalent; a request without both is rejected."""
    body = native.chat_request({"model": "qwen-max", "input": {"prompt": "hi"}}, stream=False)
    assert body["messages"] == [{"role": "user", "content": "hi"}]
    with pytest.raises(ApiError):
        native.validate(native.chat_request({"model": "qwen-max"}, stream=False), "text")


FORCED = {"tools": [TOOL], "tool_choice": "required"}
CONTRADICTION = {"reasoning_effort": "high", "enable_thinking": False}


@pytest.mark.parametrize(
    ("facts", "fields", "message"),
    [
        (Unverified(budget=False), {"thinking_budget": 9}, "not supported"),
        (Unverified(effort_against_switch=False), CONTRADICTION, "contradict"),
        (Unverified(forced_tool_while_thinking=False), FORCED, "tool_choice"),
    ],
)
def test_undocumented_behavior_has_a_switch(facts, fields, message):
    """By default an undocumented field is accepted; its switch rejects it."""
    body = {"model": "qwen4-max", "messages": HI, **fields}
    chat.validate(body)
    with pytest.raises(ApiError, match=message):
        chat.validate(body, facts)
