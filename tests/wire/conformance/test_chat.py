"""The checker of OpenAI's contract: every rule has a response that violates it, and a correct response
violates none."""

import base64
import json
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qproxy.wire.conformance import RULES, chat, violations
from qproxy.wire.conformance import bodies as plain
from qproxy.wire.errors import UpstreamError
from qproxy.wire.events import (
    ChoiceFinished,
    RawToolCallDelta,
    StreamFailed,
    TextDelta,
    ToolCallArgumentsDelta,
    ToolCallStart,
)

HEAD = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
USAGE = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
FIRST = {"role": "assistant", "content": ""}
BEGUN = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "f", "arguments": ""}}


def chunk(delta=None, finish=None, **extra):
    choices = [{"index": 0, "delta": delta or {}, "finish_reason": finish}]
    return json.dumps({**HEAD, "choices": choices, **extra})


def piece(text='{"a": 1}', **extra):
    return chunk({"tool_calls": [{"index": 0, "function": {"arguments": text}, **extra}]})


def call(**changes):
    return chunk({"tool_calls": [{**BEGUN, **changes}]})


STOP, DONE, SECOND = chunk({}, "stop"), "[DONE]", {"index": 1, "id": "call_2"}
CALLED = chunk({}, "tool_calls")
COUNTED = json.dumps({**HEAD, "choices": [], "usage": USAGE})


def test_a_correct_stream_has_no_violation():
    """Text, reasoning, a call and the requested usage add up without a violation."""
    thought = chunk({"reasoning_content": "hm"})
    frames = [chunk(FIRST), thought, chunk({"content": "so"}), call(), piece(), CALLED, COUNTED, DONE]
    reading = chat.check_stream(frames, usage=True)
    assert (reading.violations, reading.error, reading.tokens) == ([], None, 7)
    assert (reading.text, reading.reasoning, reading.calls) == ("so", "hm", [("f", '{"a": 1}')])
    assert reading.finish_reasons == ["tool_calls"]


STREAMS = {
    "no end": ("done", [chunk(FIRST), STOP]),
    "more after the end": ("done", [chunk(FIRST), STOP, DONE, STOP]),
    "not JSON": ("json", [chunk(FIRST), "{oops", STOP, DONE]),
    "not an object": ("json", ["[1]"]),
    "another object": ("envelope", [chunk(FIRST, object="x"), STOP, DONE]),
    "another id": ("envelope", [chunk(FIRST), chunk({}, "stop", id="d"), DONE]),
    "no model": ("envelope", [chunk(FIRST, model=None), chunk({}, "stop", model=None), DONE]),
    "no role": ("role", [chunk({"content": "x"}), STOP, DONE]),
    "no finish": ("finish", [chunk(FIRST), DONE]),
    "two finishes": ("finish", [chunk(FIRST), STOP, STOP, DONE]),
    "odd reason": ("reason", [chunk(FIRST), chunk({}, "eos"), DONE]),
    "calls that stop": ("reason", [chunk(FIRST), call(), piece(), STOP, DONE]),
    "no calls": ("reason", [chunk(FIRST), CALLED, DONE]),
    "no index": ("call-index", [chunk(FIRST), call(index=None), piece(), CALLED, DONE]),
    "from one": ("call-index", [chunk(FIRST), call(index=1), CALLED, DONE]),
    "one index for two": ("call-index", [chunk(FIRST), call(), piece(), call(id="call_2"), CALLED, DONE]),
    "no id": ("call-id", [chunk(FIRST), call(id=""), piece(), CALLED, DONE]),
    "an id again": ("call-id", [chunk(FIRST), call(), piece(id="call_1"), CALLED, DONE]),
    "an id for two": ("call-id", [chunk(FIRST), call(), piece(), call(index=1), CALLED, DONE]),
    "no name": ("call-name", [chunk(FIRST), call(function={"arguments": "{}"}), CALLED, DONE]),
    "a name in pieces": ("call-name",
        [chunk(FIRST), call(), piece(function={"name": "f", "arguments": "{}"}), CALLED, DONE]),
    "no type": ("call-type", [chunk(FIRST), call(type=None), piece(), CALLED, DONE]),
    "interleaved": ("call-order", [chunk(FIRST), call(), call(**SECOND), piece(), CALLED, DONE]),
    "arguments as an object": ("arguments", [chunk(FIRST), call(), piece({"a": 1}), CALLED, DONE]),
    "arguments cut": ("arguments", [chunk(FIRST), call(), piece('{"a'), CALLED, DONE]),
    "arguments are a list": ("arguments", [chunk(FIRST), call(), piece("[]"), CALLED, DONE]),
    "usage unasked": ("usage", [chunk(FIRST), STOP, COUNTED, DONE]),
    "usage beside a choice": ("usage", [chunk(FIRST, usage=USAGE), STOP, DONE]),
    "an empty chunk": ("usage", [chunk(FIRST), STOP, json.dumps({**HEAD, "choices": []}), DONE]),
    "no choices": ("message", [json.dumps(HEAD), DONE]),
    "no delta": ("message", [json.dumps({**HEAD, "choices": [{"index": 0}]}), DONE]),
}  # fmt: skip


@pytest.mark.parametrize(("rule", "frames"), STREAMS.values(), ids=STREAMS.keys())
def test_streams_with_a_violation(rule, frames):
    """Each violation is named by its rule, and every rule states its consequence."""
    found = chat.check_stream(frames, usage=False).violations
    assert rule in {breach.rule for breach in found}
    assert all(breach.rule in RULES and breach.message for breach in found)


ASKED = {
    "absent": [chunk(FIRST), STOP, DONE],
    "not the last": [chunk(FIRST), COUNTED, STOP, DONE],
    "beside the finish": [chunk(FIRST), chunk({}, "stop", usage=USAGE), DONE],
    "wrong sum": [chunk(FIRST), STOP,
        json.dumps({**HEAD, "choices": [], "usage": {**USAGE, "total_tokens": 9}}), DONE],
    "no counts": [chunk(FIRST), STOP, json.dumps({**HEAD, "choices": [], "usage": {"total_tokens": "7"}}),
        DONE],
}  # fmt: skip


@pytest.mark.parametrize("frames", ASKED.values(), ids=ASKED.keys())
def test_requested_usage(frames):
    """Usage is in a chunk of its own, last, with counts that add up."""
    assert "usage" in {breach.rule for breach in chat.check_stream(frames, usage=True).violations}


MESSAGE = {"role": "assistant", "content": "hi"}
CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}


def body(message=MESSAGE, finish="stop", **extra):
    choices = [{"index": 0, "message": message, "finish_reason": finish}]
    return {**HEAD, "object": "chat.completion", "choices": choices, "usage": USAGE, **extra}


def test_a_correct_response_has_no_violation():
    """A response has text, or a call with null content."""
    assert chat.check_response(body()).violations == []
    reading = chat.check_response(
        body({"role": "assistant", "content": None, "tool_calls": [CALL]}, "tool_calls")
    )
    assert (reading.violations, reading.calls) == ([], [("f", "{}")])


WHOLE = {
    "a chunk": ("envelope", body(object="chat.completion.chunk")),
    "no choices": ("message", body(choices=[])),
    "no message": ("message", body(choices=[{"index": 0}])),
    "no content": ("message", body({"role": "assistant"})),
    "empty list of calls": ("message", body({**MESSAGE, "tool_calls": []})),
    "odd role": ("role", body({**MESSAGE, "role": "model"})),
    "no finish": ("finish", body(finish=None)),
    "no usage": ("usage", body(usage=None)),
    "no function": ("call-type", body({**MESSAGE, "tool_calls": [{"id": "x"}]})),
    "odd type": ("call-type", body({**MESSAGE, "tool_calls": [{**CALL, "type": "tool"}]}, "tool_calls")),
    "parsed arguments": ("arguments", body({**MESSAGE,
        "tool_calls": [{**CALL, "function": {"name": "f", "arguments": {}}}]}, "tool_calls")),
    "a list": ("json", []),
}  # fmt: skip


@pytest.mark.parametrize(("rule", "answer"), WHOLE.values(), ids=WHOLE.keys())
def test_whole_responses_with_a_violation(rule, answer):
    """The same rules apply to whole responses."""
    assert rule in {breach.rule for breach in chat.check_response(answer).violations}


@pytest.mark.parametrize("error", [{"error": {"message": "no"}}, {"error": "no"}], ids=["object", "words"])
def test_keeps_the_message_of_an_error(error):
    """The message of a server's error is preserved."""
    assert chat.check_response(error).error == "no"
    assert chat.check_stream([chunk(FIRST), json.dumps(error)], usage=False).error == "no"


EVENTS = {
    "a delta": ([RawToolCallDelta(), ChoiceFinished("stop")], "call-index"),
    "after a failure": ([StreamFailed(UpstreamError("x")), TextDelta("y")], "finish"),
    "an empty piece": (
        [ToolCallStart(0, "a", "f"), ToolCallArgumentsDelta(0, ""), ChoiceFinished("tool_calls")],
        "arguments",
    ),
}


@pytest.mark.parametrize(("events", "rule"), EVENTS.values(), ids=EVENTS.keys())
def test_events_with_a_violation(events, rule):
    """Streams of events that violate a rule are reported."""
    assert [breach.rule for breach in violations(events)] == [rule]


def test_model_lists():
    """The names and violations of a list are returned."""
    assert plain.check_models({"object": "list", "data": [{"id": "a"}]}) == (["a"], [])
    names, found = plain.check_models({"data": [{"id": "a"}, {}]})
    assert (names, [breach.rule for breach in found]) == (["a"], ["models", "models"])
    assert [breach.rule for breach in plain.check_models([])[1]] == ["models"]


ERROR = {"message": "m", "type": "t", "param": None, "code": None}
ERRORS = {
    "right": (404, {"error": ERROR}, []),
    "served": (200, {}, ["an invalid request is answered with status 200"]),
    "our fault": (500, {"error": ERROR}, ["an invalid request is answered with status 500"]),
    "detail": (422, {"detail": "x"}, ["`error` is not an object"]),
    "code is a number": (404, {"error": {**ERROR, "code": 404}}, ["error.code is 404"]),
    "no param": (400, {"error": {"message": "m", "type": "t", "code": None}}, ["error.param is absent"]),
}


@pytest.mark.parametrize(("status", "answer", "words"), ERRORS.values(), ids=ERRORS.keys())
def test_errors(status, answer, words):
    """An error response has a 4xx status and OpenAI's four keys."""
    assert [breach.message for breach in plain.check_error(status, answer)] == words


def test_embeddings():
    """Vectors are in order, in the requested format, with their usage."""
    row = base64.b64encode(struct.pack("<2f", 1.0, 2.0)).decode()

    def answer(*rows):
        data = [{"index": n, "embedding": row} for n, row in enumerate(rows)]
        return {"data": data, "usage": {"prompt_tokens": 2, "total_tokens": 2}}

    assert plain.check_embeddings(answer([1.0], [2]), 2, as_base64=False) == []
    assert plain.check_embeddings(answer(row), 1, as_base64=True) == []
    for wrong, as_base64 in [
        (answer(row), False), (answer([1.0]), True), (answer("a"), True), (answer(), False), ({}, False),
        ({**answer(row), "usage": None}, True),
    ]:  # fmt: skip
        assert plain.check_embeddings(wrong, 1, as_base64=as_base64)


WORDS = (
    "choices",
    "delta",
    "message",
    "tool_calls",
    "function",
    "index",
    "id",
    "usage",
    "error",
    "data",
    "role",
    "object",
)
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-2,
        3) | st.floats(allow_nan=False) | st.sampled_from(("", "assistant", "{", *WORDS)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS), inner, max_size=5),
    max_leaves=25,
)  # fmt: skip


@given(st.lists(ANYTHING, max_size=4))
def test_any_json_is_checked_without_an_exception(bodies):
    """The checker accepts any JSON and raises nothing."""
    chat.check_stream([json.dumps(body) for body in bodies], usage=True)
    for answer in bodies:
        chat.check_response(answer)
        plain.check_models(answer)
        plain.check_error(404, answer)
        plain.check_embeddings(answer, 1, as_base64=True)


def test_every_rule_is_tested():
    """Every rule of the table is violated by a response above, except the one about a header."""
    tried = {rule for rule, _ in (*STREAMS.values(), *WHOLE.values())} | {"models", "vectors", "error"}
    assert set(RULES) - tried == {"content-type"}
