"""Received values are made storable at the boundary: names are rejected or repaired, counts are bounded."""

import json
import sqlite3
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qproxy.wire import json_codec, storable, tool_calls
from qproxy.wire.dialects import deltas, error_mapping
from qproxy.wire.endpoints import ENDPOINTS, models
from qproxy.wire.endpoints.embeddings import decode as decode_embeddings
from qproxy.wire.errors import RequestError
from qproxy.wire.events import ChoiceFinished, RawToolCallDelta, StreamDone, ToolCallStart, Turn
from qproxy.wire.models.catalog import EMPTY
from qproxy.wire.oauth import DeviceAuthorization, parse_authorization
from tests.defaults import decoder
from tests.wire.strangers import values

HALF = "a\ud800"
CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
ITEM = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
RESULT = {"role": "tool", "content": "x", "tool_call_id": HALF}
DECODERS = {endpoint.path: decoder(endpoint) for endpoint in ENDPOINTS}
LIMITS = {"default_model": None, "max_messages": 10_000}


def tool(**fields):
    return {"type": "function", "function": {"name": "f", **fields}}


def call(**fields):
    return {
        "role": "assistant",
        "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", **fields}}],
    }


NAMES = {
    "model": ("/chat/completions", {**CHAT, "model": HALF}, "model"),
    "user": ("/chat/completions", {**CHAT, "user": HALF}, "user"),
    "a key of metadata": ("/chat/completions", {**CHAT, "metadata": {HALF: "x"}}, f"metadata.{HALF}"),
    "a tool": ("/chat/completions", {**CHAT, "tools": [tool(name=HALF)]}, "tools[0].function.name"),
    "a function": ("/chat/completions", {**CHAT, "functions": [{"name": HALF}]}, "functions[0].name"),
    "a tool of this server": ("/chat/completions", {**CHAT, "tools": [{"type": "qproxy", "name": HALF}]},
        "tools[0].name"),
    "an MCP server": ("/chat/completions", {**CHAT, "tools": [{"type": "mcp", "server_label": HALF}]},
        "tools[0].server_label"),
    "an earlier call": ("/chat/completions", {**CHAT, "messages": [call(name=HALF)]},
        "messages[0].tool_calls[0].function.name"),
    "a result": ("/chat/completions", {**CHAT, "messages": [RESULT]}, "messages[0].tool_call_id"),
    "a NUL": ("/chat/completions", {**CHAT, "model": "a\0b"}, "model"),
    "a completion's model": ("/completions", {"model": HALF, "prompt": "x"}, "model"),
    "a completion's user": ("/completions", {"model": "m", "prompt": "x", "user": HALF}, "user"),
    "a response's model": ("/responses", {"model": HALF, "input": "x"}, "model"),
    "a key of a response's metadata": ("/responses", {"model": "m", "input": "x", "metadata": {HALF: "x"}},
        f"metadata.{HALF}"),
    "the response before": ("/responses", {"model": "m", "input": "x", "previous_response_id": HALF},
        "previous_response_id"),
    "a cache's key": ("/responses", {"model": "m", "input": "x", "prompt_cache_key": HALF},
        "prompt_cache_key"),
    "an item": ("/responses", {"model": "m", "input": [{**ITEM, "id": HALF}]}, "input[0].id"),
    "an item's id of another type": ("/responses", {"model": "m", "input": [{**ITEM, "id": ["x"]}]},
        "input[0].id"),
    "a reference": ("/responses", {"model": "m", "input": [{"type": "item_reference", "id": HALF}]},
        "input[0].id"),
    "a reference of another type": ("/responses",
        {"model": "m", "input": [{"type": "item_reference", "id": [1]}]}, "input[0].id"),
    "a reference without a type": ("/responses", {"model": "m", "input": [{"id": {"x": 1}}]}, "input[0].id"),
    "a reference to nothing": ("/responses", {"model": "m", "input": [{"type": "item_reference"}]},
        "input[0].id"),
    "a call": ("/responses", {"model": "m", "input": [{**ITEM, "name": HALF}]}, "input[0].name"),
    "a call's id": ("/responses", {"model": "m", "input": [{**ITEM, "call_id": HALF}]}, "input[0].call_id"),
    "a group": ("/responses", {"model": "m", "input": [{**ITEM, "namespace": HALF}]}, "input[0].namespace"),
}  # fmt: skip


@pytest.mark.parametrize(("path", "body", "param"), NAMES.values(), ids=NAMES)
def test_rejects_a_name_that_no_store_accepts(path, body, param):
    """A name or an id with a lone surrogate, a NUL or another type is a 400 that names its field."""
    with pytest.raises(RequestError) as refusal:
        DECODERS[path](json.loads(json.dumps(body)), id="x", created=0, **LIMITS)
    assert (refusal.value.status, refusal.value.param) == (400, param)


@pytest.mark.parametrize("name", ["model", "user"])
def test_a_name_in_a_request_for_embeddings(name):
    """Requests for embeddings reject the same names."""
    with pytest.raises(RequestError) as refusal:
        decode_embeddings({"model": "m", "input": "x", name: HALF})
    assert (refusal.value.status, refusal.value.param) == (400, name)


CONTENTS = {
    "a message": ("/chat/completions", {**CHAT, "messages": [{"role": "user", "content": HALF}]}),
    "a part": ("/chat/completions",
        {**CHAT, "messages": [{"role": "user", "content": [{"type": "text", "text": HALF}]}]}),
    "arguments": ("/chat/completions", {**CHAT, "messages": [call(arguments=HALF)]}),
    "a description": ("/chat/completions", {**CHAT, "tools": [tool(description=HALF)]}),
    "a value of metadata": ("/chat/completions", {**CHAT, "metadata": {"x": HALF}}),
    "a prompt": ("/completions", {"model": "m", "prompt": HALF}),
    "an input": ("/responses", {"model": "m", "input": HALF}),
    "instructions": ("/responses", {"model": "m", "input": "x", "instructions": HALF}),
    "a call's arguments": ("/responses", {"model": "m", "input": [{**ITEM, "arguments": HALF}]}),
}  # fmt: skip


@pytest.mark.parametrize(("path", "body"), CONTENTS.values(), ids=CONTENTS)
def test_contents_are_forwarded(path, body):
    """Content may hold a lone surrogate: it is forwarded as an escape."""
    turn = DECODERS[path](json.loads(json.dumps(body)), id="x", created=0, **LIMITS)
    assert b"\\ud800" in json_codec.dumps([turn.messages, turn.tools, turn.params])


@given(st.text(st.characters(exclude_categories=())))
def test_storable_text_survives_sqlite(text):
    """`is_storable_text` accepts what SQLite returns unchanged, and `storable_text` makes any text such a
    text."""
    stored = storable.storable_text(text)
    assert storable.is_storable_text(stored)
    assert (stored == text) is storable.is_storable_text(text)
    with sqlite3.connect(":memory:") as database:
        assert database.execute("SELECT ?", (stored,)).fetchone() == (stored,)


COUNTS: list[tuple[Any, int]] = [
    (5, 5), (0, 0), (-1, 0), (10**300, storable.MAX_COUNT), (-(10**300), 0), (2**63, storable.MAX_COUNT),
    (5.0, 5), (5.9, 5), (1e308, storable.MAX_COUNT), (-0.5, 0), (float("nan"), 0),
    (float("inf"), storable.MAX_COUNT),
    (True, 0), (None, 0), ("5", 0), ([5], 0), ({}, 0),
]  # fmt: skip


@pytest.mark.parametrize(("value", "expected"), COUNTS, ids=repr)
def test_a_count(value, expected):
    """Values that are not counts become 0, and no count exceeds what can be stored and summed."""
    counted = storable.parse_count(value)
    assert (type(counted), counted) == (int, expected)


@given(
    st.dictionaries(
        st.sampled_from(
            [
                "prompt_tokens",
                "input_tokens",
                "completion_tokens",
                "output_tokens",
                "total_tokens",
                "cached_tokens",
                "prompt_tokens_details",
                "completion_tokens_details",
            ]
        ),
        st.one_of(
            values, st.dictionaries(st.sampled_from(["cached_tokens", "reasoning_tokens", "x"]), values)
        ),
    )
)
def test_any_usage_is_storable(counts):
    """Any usage that an upstream reports is parsed into storable counts."""
    usage = deltas.parse_usage(counts)
    details = (usage.cached_tokens, usage.reasoning_tokens)
    for count in (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens, *details):
        assert type(count) is int
        assert 0 <= count <= 2 * storable.MAX_COUNT


def test_a_list_of_models():
    """A model with an invalid name is not listed, and a time is a number."""
    entries = [{"id": HALF}, {"id": "m", "created": 10**400, "owned_by": HALF}, {"id": "n", "created": True}]
    found = models.parse_models({"data": entries}, EMPTY)
    assert [(model.id, model.created, model.owned_by) for model in found] == [
        ("m", storable.MAX_SECONDS, "a?"), ("n", 0, "qwen"),
    ]  # fmt: skip


WAITS = ["9" * 400, "nan", "inf", "-5", "x", "Mon, 01 Jan 99999999999999999999 00:00:00 GMT"]


@pytest.mark.parametrize("name", [b"retry-after", b"retry-after-ms"])
@pytest.mark.parametrize("value", WAITS)
def test_a_retry_after_is_finite(name, value):
    """Any Retry-After header gives a valid number of seconds or None."""
    headers = ((name, value.encode()), (b"date", b"Mon, 01 Jan 2026 00:00:00 GMT"))
    error = error_mapping.error_from_response(429, headers, b"{}")
    assert error.retry_after is not None
    assert 0 <= error.retry_after <= error_mapping.MAX_RETRY_AFTER
    assert error.retry_after_hint is None or 0 <= error.retry_after_hint <= error_mapping.YEAR


def test_error_messages_are_storable():
    """The message of an error is storable, because it is logged and shown."""
    body = {"error": {"message": HALF, "param": HALF, "code": HALF}, "request_id": HALF}
    error = error_mapping.error_from_response(400, (), json.dumps(body).encode())
    assert (error.message, error.param, error.request_id) == ("a?", "a?", "a?")


def test_an_infinite_device_code_lifetime():
    """A number beyond all bounds in an identity server's response is unknown."""
    body = {"device_code": "c", "verification_uri": "https://h/p", "expires_in": 10**400, "interval": 10**400}
    authorization = parse_authorization(200, json.dumps(body).encode())
    assert isinstance(authorization, DeviceAuthorization)
    assert (authorization.expires_in, authorization.interval) == (300.0, None)


@pytest.mark.parametrize("shape", ['{"a":%s}', "[%s]"])
def test_parsed_json_can_be_serialized(shape):
    """JSON is accepted only to a depth that can be written again, further down the stack."""
    text = "1"
    for depth in range(3000):
        text = shape.replace("%s", text)
        if depth % 50 == 0 or 490 < depth < 510:
            try:
                value = json_codec.loads(text)
            except json_codec.NestingTooDeep:
                assert depth >= json_codec.MAX_DEPTH
            else:
                assert depth < json_codec.MAX_DEPTH
                assert json_codec.dumps(value)


def test_names_of_a_models_calls():
    """The name and id of a model's call are made storable."""
    turn = Turn(id="x", created=0, model="m", messages=[], tools=[tool()])
    stage = tool_calls.build_pipeline(turn)
    events = [
        event
        for item in (RawToolCallDelta(0, HALF, HALF, "{}"), ChoiceFinished("tool_calls"), StreamDone())
        for event in stage.feed(item)
    ]
    (made,) = [event for event in [*events, *stage.close()] if isinstance(event, ToolCallStart)]
    assert (made.id, made.name) == ("a?", "a?")
