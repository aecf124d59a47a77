"""The checker of Anthropic's contract: a correct response has no violation, and each rule finds one."""

import json

import pytest

from qproxy.wire.conformance.anthropic import RULES, check_message, check_stream

USAGE = {
    "input_tokens": 1,
    "output_tokens": 1,
    "cache_read_input_tokens": 0,
    "cache_creation_input_tokens": 0,
}
EMPTY: dict[str, object] = {
    "id": "msg_1", "type": "message", "role": "assistant", "model": "m", "content": [], "stop_reason": None,
    "stop_sequence": None, "usage": USAGE,
}  # fmt: skip
START = {"type": "message_start", "message": EMPTY}
END = {"type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_sequence": None}, "usage": USAGE}
TOOL_END = {**END, "delta": {"stop_reason": "tool_use", "stop_sequence": None}}
STOP = {"type": "message_stop"}
TEXT = {"type": "text", "text": ""}
THINKING = {"type": "thinking", "thinking": "", "signature": ""}
TOOL = {"type": "tool_use", "id": "t1", "name": "f", "input": {}}


def begin(block, index=0):
    return {"type": "content_block_start", "index": index, "content_block": block}


def delta(kind, index=0, **fields):
    return {"type": "content_block_delta", "index": index, "delta": {"type": kind, **fields}}


def end(index=0):
    return {"type": "content_block_stop", "index": index}


def block(value, *deltas, index=0):
    return [begin(value, index), *deltas, end(index)]


SAID = block(TEXT, delta("text_delta", text="a"))
THOUGHT = block(THINKING, delta("thinking_delta", thinking="t"), delta("signature_delta", signature="s"))
CALLED = block(
    TOOL, delta("input_json_delta", partial_json='{"a":'), delta("input_json_delta", partial_json="1}")
)


def judge(*events):
    """Check the stream of these events, each under its own name."""
    return check_stream([(event["type"], json.dumps(event)) for event in events])


def broken(parsed):
    return {violation.rule for violation in parsed.violations}


def test_a_correct_stream_has_no_violation():
    """A correct stream adds up to its message, and the message is correct as a whole response."""
    moved = [{**event, "index": 1} if "index" in event else event for event in SAID]
    last = [{**event, "index": 2} if "index" in event else event for event in CALLED]
    parsed = judge(START, {"type": "ping"}, *THOUGHT, *moved, *last, TOOL_END, STOP)
    assert parsed.violations == []
    assert parsed.pings == 1
    assert parsed.message["content"] == [
        {"type": "thinking", "thinking": "t", "signature": "s"},
        {"type": "text", "text": "a"},
        {"type": "tool_use", "id": "t1", "name": "f", "input": {"a": 1}},
    ]
    assert check_message(parsed.message).violations == []
    assert judge(START, END, STOP).violations == []


def test_an_error_is_no_violation():
    """An error in a stream or in place of a response is no violation if it has its type and message."""
    error = {"type": "error", "error": {"type": "api_error", "message": "m"}, "request_id": None}
    for parsed in (judge(START, error), judge(error), check_message(error)):
        assert parsed.violations == []
        assert parsed.error == error["error"]
    assert broken(judge(START, {"type": "error", "error": {"message": ""}})) == {"error"}
    assert broken(judge(START, error, STOP)) == {"message-stop"}


TWO = block(TEXT, delta("text_delta", 1, text="b"), index=1)
BREACHES = {
    "no start": ([*SAID, END, STOP], "message-start"),
    "two starts": ([START, START, END, STOP], "message-start"),
    "a start with content": (
        [{**START, "message": {**EMPTY, "content": [TEXT]}}, END, STOP],
        "message-start",
    ),
    "a start without a model": ([{**START, "message": {**EMPTY, "model": None}}, END, STOP], "envelope"),
    "a start of another role": ([{**START, "message": {**EMPTY, "role": "user"}}, END, STOP], "envelope"),
    "no usage at the start": ([{**START, "message": {**EMPTY, "usage": None}}, END, STOP], "usage"),
    "no usage at the end": ([START, {**END, "usage": {"output_tokens": None}}, STOP], "usage"),
    "a block in a block": ([START, *SAID[:2], *TWO, end(), END, STOP], "block-order"),
    "a delta after the block": ([START, *SAID, SAID[1], END, STOP], "block-order"),
    "a block that does not end": ([START, *SAID[:2], END, STOP], "block-order"),
    "an end without a block": ([START, end(), END, STOP], "block-order"),
    "a gap": ([START, *TWO, END, STOP], "block-index"),
    "a delta of another kind": (
        [START, *block(TEXT, delta("thinking_delta", thinking="t")), END, STOP],
        "block-kind",
    ),
    "a delta without text": ([START, *block(TEXT, delta("text_delta")), END, STOP], "block-kind"),
    "an unknown block": ([START, *block({"type": "hologram"}), END, STOP], "block-kind"),
    "an empty text": ([START, *block(TEXT), END, STOP], "block-empty"),
    "no signature": ([START, *THOUGHT[:2], end(), END, STOP], "signature"),
    "a thought after the signature": ([START, *THOUGHT[:3], THOUGHT[1], end(), END, STOP], "signature"),
    "no input": ([START, *block(TOOL), TOOL_END, STOP], "tool-input"),
    "an input that is a list": (
        [START, *block(TOOL, delta("input_json_delta", partial_json="[]")), TOOL_END, STOP],
        "tool-input",
    ),
    "a bad id": ([START, *block({**TOOL, "id": "a:b"}, CALLED[1], CALLED[2]), TOOL_END, STOP], "tool-id"),
    "a call without tool_use": ([START, *CALLED, END, STOP], "stop-reason"),
    "tool_use without a call": ([START, *SAID, TOOL_END, STOP], "stop-reason"),
    "no reason": ([START, {**END, "delta": {"stop_reason": None}}, STOP], "stop-reason"),
    "two reasons": ([START, END, END, STOP], "stop-reason"),
    "a sequence without its reason": (
        [START, {**END, "delta": {"stop_reason": "end_turn", "stop_sequence": "x"}}, STOP],
        "stop-reason",
    ),
    "no end": ([START, *SAID, END], "message-stop"),
    "something after the end": ([START, END, STOP, {"type": "ping"}], "message-stop"),
    "an unknown event": ([START, {"type": "nothing"}, END, STOP], "event-name"),
}


@pytest.mark.parametrize(("events", "rule"), BREACHES.values(), ids=BREACHES)
def test_streams_with_a_violation(events, rule):
    """Each rule finds the stream that violates it."""
    parsed = judge(*events)
    assert rule in broken(parsed)
    assert all(violation.rule in RULES and violation.message for violation in parsed.violations)


def test_frames_with_a_violation():
    """An event under another name, one without a name and one that is not JSON are found."""
    start, stop = ("message_start", json.dumps(START)), ("message_stop", json.dumps(STOP))
    delta_ = ("message_delta", json.dumps(END))
    assert broken(check_stream([start, ("message", json.dumps(END)), stop])) == {"event-name"}
    assert broken(check_stream([start, ("", "[DONE]"), delta_, stop])) == {"json"}
    assert broken(check_message([])) == {"json"}


def test_every_rule_is_tested():
    """Every rule of the table is violated by a case above."""
    assert set(RULES) == {rule for _, rule in BREACHES.values()} | {"json", "error"}
