"""DashScope's native API: the shape of requests, increments and snapshots, framing and errors."""

import json

import pytest

from qproxy.bootstrap.models import package_catalog
from qproxy.wire import sse, tool_calls
from qproxy.wire.dialects import DIALECTS, UpstreamTarget
from qproxy.wire.events import StreamFailed, Turn, Usage
from qproxy.wire.pipeline import Pipeline
from tests.wire.tool_call_contract import check, fold

TARGET = UpstreamTarget("https://h/compatible-mode/v1", "qwen-plus", "sk-1")
TOOLS = [{"type": "function", "function": {"name": "get"}}]
HELLO = [{"role": "user", "content": "hi"}]
NATIVE = DIALECTS["dashscope"]


def turn(**more):
    return Turn(**{"id": "i", "created": 0, "model": "qwen-plus", "messages": HELLO, **more})


def test_request():
    """Messages are in input, everything else in parameters; a stream is requested by a header."""
    request = NATIVE.request(
        turn(tools=TOOLS, tool_choice="auto", params={"top_p": 0.5}, stream=True), TARGET
    )
    assert request.url == "https://h/api/v1/services/aigc/text-generation/generation"
    assert (b"x-dashscope-sse", b"enable") in request.headers
    assert json.loads(request.body) == {
        "model": "qwen-plus",
        "input": {"messages": HELLO},
        "parameters": {"top_p": 0.5, "result_format": "message", "tools": TOOLS, "tool_choice": "auto",
            "incremental_output": True},
    }  # fmt: skip
    whole = NATIVE.request(turn(), TARGET)
    assert b"x-dashscope-sse" not in dict(whole.headers)
    assert "incremental_output" not in json.loads(whole.body)["parameters"]


@pytest.mark.parametrize(
    "model", ["qwen4-max", "qwen3-vl-plus", "qwen3.5-plus", "qwen3.7-flash", "qwen3-omni-flash"]
)
def test_multimodal_models_use_their_own_path(model):
    """Vision, omni and newer models use the multimodal path, with untyped parts."""
    picture = {"type": "image_url", "image_url": {"url": "https://x/y.png"}}
    messages = [{"role": "user", "content": [picture, {"type": "text", "text": "what?"}]}]
    target = UpstreamTarget("https://h/api/v1", model, spec=package_catalog().get(model))
    request = NATIVE.request(turn(messages=messages), target)
    assert request.url == "https://h/api/v1/services/aigc/multimodal-generation/generation"
    (message,) = json.loads(request.body)["input"]["messages"]
    assert message["content"] == [{"image": "https://x/y.png"}, {"text": "what?"}]


def test_unknown_part_types_are_forwarded():
    """A part of an unknown type is sent to the multimodal path under its own name."""
    content = [{"type": "hologram", "hologram": {"url": "x"}}, {"type": "refusal", "refusal": "no"}]
    request = NATIVE.request(turn(messages=[{"role": "user", "content": content}]), TARGET)
    assert "/multimodal-generation/" in request.url
    (message,) = json.loads(request.body)["input"]["messages"]
    assert message["content"] == [{"hologram": {"url": "x"}}, {"text": "no"}]


def test_text_models_get_strings():
    """Text parts become one string if a model takes no parts."""
    messages = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
    (message,) = json.loads(NATIVE.request(turn(messages=messages), TARGET).body)["input"]["messages"]
    assert message["content"] == "ab"


def event(message, reason="null", tokens=1):
    data = {
        "output": {"choices": [{"finish_reason": reason, "message": {"role": "assistant", **message}}]},
        "usage": {"input_tokens": 5, "output_tokens": tokens, "total_tokens": 5 + tokens},
        "request_id": "r",
    }
    return f"id:{tokens}\nevent:result\n:HTTP_STATUS/200\ndata:{json.dumps(data)}\n\n"


def call(arguments, name="get", id="call_1", index=0):
    return {"index": index, "id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


def play(text, dialect="dashscope", size=None):
    """Return the events of a stream, read whole or in chunks of `size` bytes."""
    raw = text.encode()
    decoder = DIALECTS[dialect].decoder(TARGET)
    chain = Pipeline(sse.Decoder(), decoder, tool_calls.build_pipeline(turn(tools=TOOLS)))
    pieces = [raw[at : at + size] for at in range(0, len(raw), size)] if size else [raw]
    out = [one for piece in pieces for one in chain.feed(piece)] + chain.close()
    check(out)
    return out


STREAMS = {
    "increments": (
        event({"content": "Hel"}) + event({"content": "lo"}) + event({"content": ""}, "stop", 2),
        ("Hello", "", [], "stop"),
    ),
    "snapshots": (
        event({"content": "Hel"}) + event(
            {"content": "Hello"}) + event({"content": "Hello you"}) + event({"content": "Hello you"}, "stop"),
        ("Hello you", "", [], "stop"),
    ),
    "increments that look like snapshots": (
        event({"content": "1"}) + event({"content": "10"}) + event({"content": "2"}) + event({"content": ""},
            "stop"),
        ("1102", "", [], "stop"),
    ),
    "thoughts": (
        event({"reasoning_content": "hm", "content": ""}) + event({"reasoning_content": "",
            "content": "ok"}) + event({"content": ""}, "stop"),
        ("ok", "hm", [], "stop"),
    ),
    "parts": (event({"content": [{"text": "ok"}]}) + event({"content": []}, "stop"), ("ok", "", [], "stop")),
    "a call in increments": (
        event({"content": "", "tool_calls": [call('{"a"')]}) + event({"content": "",
            "tool_calls": [call(": 1}", "", "")]}) + event({"content": ""}, "tool_calls"),
        ("", "", [["call_1", "get", '{"a": 1}']], "tool_calls"),
    ),
    "a call in snapshots": (
        event({"content": "", "tool_calls": [call('{"a"')]}) + event({"content": "",
            "tool_calls": [call('{"a": 1}')]}) + event({"content": "", "tool_calls": [call('{"a": 1}')]},
            "tool_calls"),
        ("", "", [["call_1", "get", '{"a": 1}']], "tool_calls"),
    ),
    "the older format": (
        'data:{"output":{"text":"Hel","finish_reason":"null"}}\n\ndata:{"output":{"text":"Hello","finish_reason":"null"}}\n\ndata:{"output":{"text":"Hello","finish_reason":"stop"}}\n\n',
        ("Hello", "", [], "stop"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("dialect", ["dashscope", "compatible"])
@pytest.mark.parametrize(("text", "expected"), STREAMS.values(), ids=STREAMS.keys())
def test_streams(text, expected, dialect):
    """Increments and snapshots give the same events, whether the native dialect is configured or detected."""
    folded = fold(play(text, dialect))[0]
    assert (folded["text"], folded["thought"], folded["calls"], folded["reason"]) == expected
    assert fold(play(text, dialect, 1))[0] == folded


def test_the_last_usage_counts():
    """Counts are cumulative: those of the last event are the response's."""
    out = play(STREAMS["increments"][0])
    assert [one for one in out if isinstance(one, Usage)][-1] == Usage(5, 2, 7)


@pytest.mark.parametrize("dialect", ["dashscope", "compatible"])
def test_errors(dialect):
    """An error event, a code in a 200, and a truncated stream are errors."""
    data = '{"code":"Throttling.RateQuota","message":"slow","request_id":"r"}'
    error = f"event:error\n:HTTP_STATUS/429\ndata:{data}\n\n"
    last = play(event({"content": "a"}) + error, dialect)[-1]
    assert isinstance(last, StreamFailed)
    assert last.error.status == 429
    assert isinstance(play(event({"content": "a"}), dialect)[-1], StreamFailed)


@pytest.mark.parametrize("dialect", ["dashscope", "compatible"])
def test_whole(dialect):
    """A whole response gives the same events; a code with status 200 is an error."""
    body = json.loads(event({"content": "ok", "tool_calls": [call("{}")]}, "tool_calls").split("data:")[1])
    stage = tool_calls.build_pipeline(turn(tools=TOOLS))
    out = [one for item in DIALECTS[dialect].response(body, TARGET) for one in stage.feed(item)]
    assert fold(out)[0]["calls"] == [["call_1", "get", "{}"]]
    assert isinstance(
        DIALECTS[dialect].response({"code": "InvalidParameter", "message": "no"}, TARGET)[0], StreamFailed
    )
    assert isinstance(DIALECTS[dialect].response([], TARGET)[0], StreamFailed)


def test_a_cache_marker_reaches_a_text_model():
    """Text models get content as a string, and as parts if the context cache has a marker."""
    target = UpstreamTarget("https://h/api/v1", "qwen-plus", spec=package_catalog().get("qwen-plus"))
    part = {"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}
    messages = [
        {"role": "user", "content": [part]},
        {"role": "user", "content": [{"type": "text", "text": "y"}]},
    ]
    request = NATIVE.request(turn(messages=messages), target)
    assert "/text-generation/" in request.url
    sent = [message["content"] for message in json.loads(request.body)["input"]["messages"]]
    assert sent == [[{"text": "x", "cache_control": {"type": "ephemeral"}}], "y"]


def test_qwen4_fields_in_the_native_dialect():
    """Qwen4's switches are parameters; ciphertext stays on its message, and cache markers on their parts."""
    part = {"type": "text", "text": "x", "prompt_cache_breakpoint": {"mode": "explicit"}}
    history = {"role": "assistant", "content": "y", "encrypted_content": "c", "reasoning_content": "r"}
    messages = [{"role": "user", "content": [part]}, history, {"role": "user", "content": "z"}]
    request_turn = turn(
        messages=messages, params={"thinking_display": "summarized", "reasoning_effort": "max"}
    )
    target = UpstreamTarget("https://h/api/v1", "qwen4-max", spec=package_catalog().get("qwen4-max"))
    body = json.loads(NATIVE.request(request_turn, target).body)
    user, answer, _ = body["input"]["messages"]
    assert user["content"] == [{"text": "x", "prompt_cache_breakpoint": {"mode": "explicit"}}]
    assert answer == {**history, "content": [{"text": "y"}]}
    assert body["parameters"]["thinking_display"] == "summarized"
    assert body["parameters"]["reasoning_effort"] == "max"
