"""The fields of a request to `/v1/messages`: forwarded, renamed, dropped or rejected."""

import pytest

from qproxy.wire.endpoints import anthropic
from qproxy.wire.errors import RequestError
from qproxy.wire.raw_json import parse_body
from qproxy.wire.token_estimate import prompt_size
from tests.defaults import DECODE_LIMITS

MESSAGES = [{"role": "user", "content": "hi"}]
ASKED = {"model": "qwen3-max", "max_tokens": 100, "messages": MESSAGES}


def decode(**change):
    """Return the turn of a request with these fields; None removes one."""
    body = {name: value for name, value in {**ASKED, **change}.items() if value is not None}
    return anthropic.decode(body, id="msg_1", created=1, **DECODE_LIMITS)


SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}}
FORMAT = {
    "response_format": {
        "type": "json_schema",
        "json_schema": {"name": "answer", "schema": SCHEMA, "strict": True},
    }
}
ALL_QWEN_PARAMS = dict.fromkeys(sorted(DECODE_LIMITS["qwen_params"]), 1)
PARAMS = {
    "the least": ({}, {}),
    "sampling": (
        {"temperature": 0.0, "top_p": 0.5, "top_k": 20},
        {"temperature": 0.0, "top_p": 0.5, "top_k": 20},
    ),
    "stop_sequences": ({"stop_sequences": ["a", "b"]}, {"stop": ["a", "b"]}),
    "no stop_sequences": ({"stop_sequences": []}, {}),
    "a format": ({"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}}, FORMAT),
    "a format of the beta": ({"output_format": {"type": "json_schema", "schema": SCHEMA}}, FORMAT),
    "all of Qwen's own": (ALL_QWEN_PARAMS, ALL_QWEN_PARAMS),
    "some of Qwen's own": (
        {"enable_search": True, "seed": 7, "repetition_penalty": 1.1, "prompt_cache_options": {"ttl": "1h"}},
        {"enable_search": True, "seed": 7, "repetition_penalty": 1.1, "prompt_cache_options": {"ttl": "1h"}},
    ),
}


@pytest.mark.parametrize(("change", "params"), PARAMS.values(), ids=PARAMS)
def test_params(change, params):
    """Parameters get chat's names, with their values unchanged."""
    turn = decode(**change)
    assert turn.params == {"max_tokens": 100, **params}
    assert turn.ignored == ()
    assert (turn.model, turn.stream, turn.id) == ("qwen3-max", False, "msg_1")


IGNORED = ("metadata", "context_management", "container", "diagnostics", "inference_geo", "service_tier",
    "speed",
           "betas", "thread", "fallbacks", "cache_control", "a_field_of_tomorrow")  # fmt: skip


def test_ignored_fields():
    """Fields without a counterpart at Qwen are dropped and named, in the client's order, without an error."""
    turn = decode(**{name: {"x": 1} for name in IGNORED}, mcp_servers=[])
    assert turn.params == {"max_tokens": 100}
    assert turn.ignored == IGNORED


REFUSED = {
    "not an object": ([], None),
    "no model": ({"model": None}, "model"),
    "no max_tokens": ({"max_tokens": None}, "max_tokens"),
    "max_tokens 0": ({"max_tokens": 0}, "max_tokens"),
    "max_tokens a text": ({"max_tokens": "5"}, "max_tokens"),
    "no messages": ({"messages": None}, "messages"),
    "empty messages": ({"messages": []}, "messages"),
    "too many messages": ({"messages": MESSAGES * 10_001}, "messages"),
    "messages an object": ({"messages": {}}, "messages"),
    "a message that is a text": ({"messages": ["hi"]}, "messages[0]"),
    "no role": ({"messages": [{"content": "x"}]}, "messages[0].role"),
    "a role of chat": ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
    "no content": ({"messages": [{"role": "user"}]}, "messages[0].content"),
    "content a number": ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
    "a block that is a text": ({"messages": [{"role": "user", "content": ["x"]}]}, "messages[0].content[0]"),
    "a block without a type": (
        {"messages": [{"role": "user", "content": [{"text": "x"}]}]},
        "messages[0].content[0].type",
    ),
    "a text block without text": (
        {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
        "messages[0].content[0].text",
    ),
    "system a number": ({"system": 5}, "system"),
    "a system block of a wrong text": ({"system": [{"type": "text", "text": 5}]}, "system[0].text"),
    "temperature": ({"temperature": 3}, "temperature"),
    "stop_sequences": ({"stop_sequences": "x"}, "stop_sequences"),
    "a stop sequence": ({"stop_sequences": [1]}, "stop_sequences[0]"),
    "thinking a text": ({"thinking": "on"}, "thinking"),
    "a budget of 0": ({"thinking": {"type": "enabled", "budget_tokens": 0}}, "thinking.budget_tokens"),
    "an effort that is a number": ({"output_config": {"effort": 5}}, "output_config.effort"),
    "a format of another type": (
        {"output_config": {"format": {"type": "grammar"}}},
        "output_config.format.type",
    ),
    "a format without a schema": (
        {"output_config": {"format": {"type": "json_schema"}}},
        "output_config.format.schema",
    ),
    "MCP servers": ({"mcp_servers": [{"type": "url", "url": "https://x"}]}, "mcp_servers"),
    "stream a text": ({"stream": "yes"}, "stream"),
}


@pytest.mark.parametrize(("change", "path"), REFUSED.values(), ids=REFUSED)
def test_rejects_invalid_fields(change, path):
    """A mistake is a 400 that names the path of the value."""
    with pytest.raises(RequestError) as caught:
        decode(**change) if isinstance(change, dict) else anthropic.decode(
            change, id="x", created=1, **DECODE_LIMITS
        )
    assert (caught.value.status, caught.value.param) == (400, path)


def test_default_model():
    """A request without a model gets the operator's."""
    body = {key: value for key, value in ASKED.items() if key != "model"}
    assert anthropic.decode(body, id="x", created=1, **{**DECODE_LIMITS, "default_model": "m"}).model == "m"


SESSIONS = {
    "of Claude Code": ('{"device_id":"d","account_uuid":"","session_id":"s-1"}', "s-1"),
    "of Claude Code, older": ("user_0a1b_account__session_s-2", "s-2"),
    "a user": ("somebody_session_x", ""),
    "JSON without one": ('{"device_id":"d"}', ""),
    "one of another type": ('{"session_id":7}', ""),
    "broken JSON": ('{"session_id":"s', ""),
    "an endless one": ('{"session_id":"' + "s" * 3000 + '"}', ""),
    "no text": (7, ""),
}


@pytest.mark.parametrize(("user", "session"), SESSIONS.values(), ids=SESSIONS)
def test_sessions(user, session):
    """The session is read from `user_id`, which is not forwarded; other metadata is no error."""
    turn = decode(metadata={"user_id": user})
    assert (turn.session, turn.ignored, "metadata" in turn.params) == (session, ("metadata",), False)
    assert decode(metadata=[user]).session == ""


def test_count():
    """A request for a token count needs no max_tokens, and may have every other field."""
    turn = anthropic.decode_count(
        {"model": "m", "messages": MESSAGES, "stream": True, "x": 1}, **DECODE_LIMITS
    )
    assert [message["content"] for message in turn.messages] == ["hi"]
    with pytest.raises(RequestError):
        anthropic.decode_count({"model": "m"}, **DECODE_LIMITS)


def test_prompt_size():
    """The size covers reasoning, calls, results, images and tools, whether their text is known or not."""
    picture = {"type": "image", "source": {"type": "url", "url": "https://x/y.png"}}
    history = [
        {"role": "user", "content": [{"type": "text", "text": "a" * 400}, picture]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "b" * 400, "signature": "s"},
                {"type": "tool_use", "id": "t", "name": "f", "input": {"x": "c" * 400}},
            ],
        },
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": "d" * 400}]},
    ]
    tools = [{"name": "f", "description": "e" * 400, "input_schema": {"type": "object"}}]
    fields = {"messages": history, "tools": tools}
    size = prompt_size(decode(**fields))
    assert (size.images, 2000 <= size.text_bytes <= 2280) == (1, True)
    body = anthropic.decode(
        parse_body(str({**ASKED, **fields}).replace("'", '"').encode()), id="x", created=1, **DECODE_LIMITS
    )
    assert abs(prompt_size(body).text_bytes - size.text_bytes) < 80
