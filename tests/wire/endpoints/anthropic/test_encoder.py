"""Anthropic's responses: the grammar of a stream, the whole response as the fold of the same events, and stop
reasons."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qproxy.wire.conformance import anthropic as contract
from qproxy.wire.endpoints import anthropic
from qproxy.wire.endpoints.anthropic import signatures
from qproxy.wire.errors import UpstreamError
from qproxy.wire.events import (
    ChoiceFinished,
    Event,
    ReasoningDelta,
    RefusalDelta,
    ServerToolCall,
    ServerToolResult,
    StreamDone,
    StreamFailed,
    TextDelta,
    ToolCallArgumentsDelta,
    ToolCallStart,
    Usage,
)
from qproxy.wire.token_ratios import TokenEstimate
from tests.anthropic_types import frames, judge_error, judge_message, judge_stream
from tests.defaults import DECODE_LIMITS
from tests.examples import examples

ASKED_MESSAGES = [{"role": "user", "content": "hello there"}]
ASKED = {"model": "m", "max_tokens": 9, "messages": ASKED_MESSAGES}
USAGE = Usage(10, 4, 14)
COUNTS = {
    "input_tokens": 10,
    "cache_creation_input_tokens": 0,
    "cache_read_input_tokens": 0,
    "output_tokens": 4,
}


def turn(**change):
    body = {**ASKED, **change}
    decoded = anthropic.decode(body, id="msg_1", created=1, request_id="req_1", **DECODE_LIMITS)
    return replace(decoded, token_estimate=TokenEstimate(prompt=3, ratio=0.25))


def encode(events, **change):
    """Return the bytes of a stream of these events."""
    encoder = anthropic.Encoder(turn(**change))
    pieces = [piece for event in events for piece in encoder.feed(event)]
    return b"".join([*pieces, *encoder.close()])


def play(*events, **change):
    """Return the whole response of the events, equal to the fold of their stream; every checker accepts
    both."""
    raw = encode(events, stream=True, **change)
    judge_stream(raw)
    streamed = contract.check_stream(frames(raw))
    body = anthropic.response(turn(**change), list(events))
    judge_message(body)
    whole = contract.check_message(json.loads(json.dumps(body)))
    assert streamed.violations == whole.violations == []
    assert streamed.message == whole.message
    return body


def text(value):
    return {"type": "text", "text": value}


def thinking(value):
    return {"type": "thinking", "thinking": value, "signature": signatures.sign(value)}


def call(id, name, **arguments):
    return {"type": "tool_use", "id": id, "name": name, "input": arguments}


def calls(*pieces, index=0, id="call_1", name="get"):
    return [ToolCallStart(index, id, name), *(ToolCallArgumentsDelta(index, piece) for piece in pieces)]


CONTENTS = {
    "text": ([TextDelta("Hel"), TextDelta("lo")], [text("Hello")]),
    "nothing": ([], []),
    "an empty text": ([TextDelta("")], []),
    "an empty text before a call": (
        [TextDelta(""), *calls('{"a": 1}'), ChoiceFinished("tool_calls")],
        [call("call_1", "get", a=1)],
    ),
    "text that is no ASCII": ([TextDelta('"é\n🌊\\')], [text('"é\n🌊\\')]),
    "thinking": ([ReasoningDelta("a"), ReasoningDelta("b")], [thinking("ab")]),
    "thinking, then text": ([ReasoningDelta("a"), TextDelta("b")], [thinking("a"), text("b")]),
    "text, then thinking, then text": (
        [TextDelta("a"), ReasoningDelta("b", inline=True), TextDelta("c")],
        [text("a"), thinking("b"), text("c")],
    ),
    "an empty thought": ([ReasoningDelta(""), TextDelta("b")], [text("b")]),
    "a call in pieces": (
        [*calls('{"a"', ": [1", "]}"), ChoiceFinished("tool_calls")],
        [call("call_1", "get", a=[1])],
    ),
    "two calls": (
        [
            TextDelta("t"),
            *calls("{}"),
            *calls('{"b": 2}', index=1, id="call_2"),
            ChoiceFinished("tool_calls"),
        ],
        [text("t"), call("call_1", "get"), call("call_2", "get", b=2)],
    ),
    "a call without arguments": ([*calls(), ChoiceFinished("tool_calls")], [call("call_1", "get")]),
    "arguments that are no object": (
        [*calls("[1,", "2]"), ChoiceFinished("tool_calls")],
        [call("call_1", "get", arguments="[1,2]")],
    ),
    "arguments that begin with blanks": (
        [*calls(" ", "\n", '{"a":1}'), ChoiceFinished("tool_calls")],
        [call("call_1", "get", a=1)],
    ),
    "an id that clients do not take": (
        [*calls("{}", id="functions.get:0"), ChoiceFinished("tool_calls")],
        [call("toolu_b64_ZnVuY3Rpb25zLmdldDow", "get")],
    ),
    "a tool of this server": (
        [
            TextDelta("a"),
            ServerToolCall("c", "clock", "{}"),
            ServerToolResult("c", "clock", "noon", True, 0.5),
            TextDelta("b"),
        ],
        [text("a"), text("b")],
    ),
    "another choice": ([TextDelta("a"), TextDelta("x", 1), ChoiceFinished("length", 1)], [text("a")]),
}


@pytest.mark.parametrize(("events", "content"), CONTENTS.values(), ids=CONTENTS)
def test_content(events, content):
    """Blocks are in the order of events, none of them empty, streamed and whole alike."""
    ends = (
        []
        if any(isinstance(event, ChoiceFinished) and not event.choice for event in events)
        else [ChoiceFinished("stop")]
    )
    body = play(*events, *ends, USAGE, StreamDone())
    assert body["content"] == content
    assert body["usage"] == COUNTS
    assert (body["id"], body["model"], body["role"], body["type"]) == ("msg_1", "m", "assistant", "message")


STOPS = {
    "stop": (ChoiceFinished("stop"), "end_turn", None),
    "a stop sequence": (ChoiceFinished("stop", matched="END"), "stop_sequence", "END"),
    "a stop that nobody asked for": (ChoiceFinished("stop", matched="<|im_end|>"), "end_turn", None),
    "length": (ChoiceFinished("length"), "max_tokens", None),
    "content_filter": (ChoiceFinished("content_filter"), "refusal", None),
}


@pytest.mark.parametrize(("finish", "reason", "sequence"), STOPS.values(), ids=STOPS)
def test_stop_reason(finish, reason, sequence):
    """A finish reason becomes Anthropic's stop reason, with the stop sequence only if it is one of the
    client's."""
    body = play(TextDelta("a"), finish, USAGE, stop_sequences=["END", "\n"])
    assert (body["stop_reason"], body["stop_sequence"]) == (reason, sequence)
    assert ("stop_details" in body) == (reason == "refusal")


def test_refusal():
    """A refusal's text is the response, and its stop reason is refusal."""
    body = play(RefusalDelta("I can"), RefusalDelta("not."), ChoiceFinished("stop"), USAGE)
    assert body["content"] == [text("I cannot.")]
    assert body["stop_reason"] == "refusal"
    assert body["stop_details"] == {"type": "refusal", "category": None, "explanation": None}


def test_omitted_thinking():
    """With `display: omitted` the block is empty, and its signature returns the reasoning in the history."""
    body = play(
        ReasoningDelta("secret"), TextDelta("b"), ChoiceFinished("stop"), USAGE,
        thinking={"type": "adaptive", "display": "omitted"},
    )  # fmt: skip
    block = {"type": "thinking", "thinking": "", "signature": signatures.sign("secret", omits_text=True)}
    assert body["content"] == [block, text("b")]
    answer = {"role": "assistant", "content": body["content"]}
    history = turn(messages=[*ASKED_MESSAGES, answer, *ASKED_MESSAGES]).messages
    assert history[1] == {"role": "assistant", "content": "b", "reasoning_content": "secret"}


def test_a_call_truncated_by_length():
    """Truncated arguments are an empty object in a whole response, and their deltas in a stream."""
    events = [*calls('{"a": "x'), ChoiceFinished("length"), USAGE]
    body = anthropic.response(turn(), events)
    assert body["content"] == [call("call_1", "get")]
    assert body["stop_reason"] == "max_tokens"
    assert rb'"partial_json":"{\"a\": \"x"' in encode(events)


def test_invalid_arguments():
    """Arguments that are not JSON are text, under a key of their own."""
    body = anthropic.response(turn(), [*calls("{oops"), ChoiceFinished("tool_calls"), USAGE])
    assert body["content"] == [call("call_1", "get", arguments="{oops")]


CACHED = Usage(100, 7, 107, {"cached_tokens": 60, "cache_creation_input_tokens": 30}, {"reasoning_tokens": 3})


def test_usage():
    """Cached tokens are not counted as input; reasoning is a part of the output."""
    assert play(TextDelta("a"), ChoiceFinished("stop"), CACHED)["usage"] == {
        "input_tokens": 10,
        "cache_creation_input_tokens": 30,
        "cache_read_input_tokens": 60,
        "output_tokens": 7,
        "output_tokens_details": {"thinking_tokens": 3},
    }


def test_unreported_usage_is_estimated():
    """The estimate has the prompt at the start and all sent deltas at the end."""
    body = play(ReasoningDelta("abcd"), TextDelta("efgh"), ChoiceFinished("stop"))
    assert body["usage"] == {**COUNTS, "input_tokens": 3, "output_tokens": 2}
    zeros = play(ReasoningDelta("abcd"), TextDelta("efgh"), ChoiceFinished("stop"), Usage())
    assert zeros["usage"] == body["usage"]
    part = play(TextDelta("abcd"), ChoiceFinished("stop"), Usage(prompt_tokens=50))
    assert part["usage"] == {**COUNTS, "input_tokens": 50, "output_tokens": 1}
    start = json.loads(frames(encode([TextDelta("x"), USAGE]))[0][1])
    assert start["message"]["usage"] == {**COUNTS, "input_tokens": 3, "output_tokens": 0}


def test_the_first_events():
    """A stream starts with one message_start and a ping, whatever its first event is."""
    for first in (USAGE, TextDelta(""), TextDelta("a"), StreamDone(), ChoiceFinished("stop")):
        names = [name for name, _ in frames(encode([first, TextDelta("b"), ChoiceFinished("stop")]))]
        assert names[:2] == ["message_start", "ping"]
        assert names.count("message_start") == names.count("message_delta") == 1
        assert names[-1] == "message_stop"


def test_failure():
    """A failed response is an error event with the request's id, and nothing follows; a whole one raises."""
    error = UpstreamError("gone", status=503)
    cases: list[list[Event]] = [[TextDelta("a"), StreamFailed(error)], [StreamFailed(error)]]
    for events in cases:
        name, data = frames(encode(events))[-1]
        assert name == "error"
        judge_error(json.loads(data))
        assert json.loads(data) == {
            "type": "error",
            "error": {"type": "overloaded_error", "message": "gone"},
            "request_id": "req_1",
        }
        parsed = contract.check_stream(frames(encode(events)))
        assert parsed.violations == []
        with pytest.raises(UpstreamError, match="gone"):
            anthropic.response(turn(), events)


def test_tool_reports():
    """Tools of this server are comments, and a report on request."""
    events: list[Event] = [
        ServerToolCall("c", "clock", "{}"),
        ServerToolResult("c", "clock", "noon", True, 0.5),
        TextDelta("b"),
        ChoiceFinished("stop"),
        USAGE,
    ]
    include = {"qproxy": {"include": ["tools"]}}
    report = {
        "tools": [{"id": "c", "name": "clock", "arguments": "{}", "output": "noon", "ok": True, "ms": 500}]
    }
    raw = encode(events, **include)
    assert b": tool clock ok 500 ms\n\n" in raw
    assert json.loads(frames(raw)[-2][1])["qproxy"] == report
    assert anthropic.response(turn(**include), events)["qproxy"] == report
    assert b'"qproxy"' not in encode(events)


def test_a_lone_surrogate_is_escaped():
    """A lone surrogate has no UTF-8 form: it is escaped."""
    assert rb'"text":"\ud83c"' in encode([TextDelta("\ud83c"), ChoiceFinished("stop")])


PIECES = st.lists(
    st.one_of(
        st.builds(TextDelta, st.text(max_size=3)),
        st.builds(ReasoningDelta, st.text(max_size=3)),
        st.builds(RefusalDelta, st.text(max_size=3)),
        st.just(USAGE),
        st.just("call"),
    ),
    max_size=12,
)


@given(PIECES, st.sampled_from(["stop", "length", "content_filter"]))
@examples(150)
def test_events_in_any_order(pieces, reason):
    """A stream of events in any order keeps the grammar and adds up to the whole response."""
    events, count = [], 0
    for piece in pieces:
        if piece == "call":
            events += calls('{"n":', f"{count}}}", index=count, id=f"call_{count}")
            count += 1
        else:
            events.append(piece)
    reason = "tool_calls" if count and reason == "stop" else reason
    play(*events, ChoiceFinished(reason))
