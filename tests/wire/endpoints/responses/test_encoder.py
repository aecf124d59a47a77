"""The Responses API's responses: events streamed and whole, validated by the SDK's types."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.responses import Response, ResponseStreamEvent

from qproxy.wire.endpoints import responses
from qproxy.wire.endpoints.openai_errors import error_object
from qproxy.wire.errors import OverloadedError, RequestError, UpstreamError
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
from tests.defaults import DECODE_LIMITS
from tests.openai_types import judge

ID = "resp_" + "0" * 24
LOGPROBS = {
    "content": [
        {
            "token": "a",
            "logprob": -1.0,
            "bytes": None,
            "top_logprobs": [{"token": "b", "logprob": -2.0, "bytes": [98]}],
        }
    ]
}


def turn(**fields):
    return responses.decode(
        {"model": "m", "input": "hi", **fields},
        id=ID,
        created=1700000000,
        **DECODE_LIMITS,
    )


def encode(turn, *events):
    encoder = responses.Encoder(turn)
    pieces = [piece for event in events for piece in encoder.feed(event)]
    return b"".join([*pieces, *encoder.close()]).decode(), encoder.response


def read(text, *, validated=True):
    """Return the events of a stream, each validated, numbered without a gap, and named by its type."""
    found = []
    for number, frame in enumerate(text.removesuffix("\n\n").split("\n\n")):
        name, _, data = frame.partition("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        assert event["sequence_number"] == number
        if validated:
            judge(ResponseStreamEvent, event)
        found.append(event)
    return found


def short(events):
    """Return the types of the events between the first two and the last, without the common prefix."""
    return [event["type"].removeprefix("response.") for event in events[2:-1]]


TEXT = [
    "output_item.added",
    "content_part.added",
    "output_text.delta",
    "output_text.done",
    "content_part.done",
    "output_item.done",
]
THOUGHT = [
    "output_item.added", "reasoning_summary_part.added", "reasoning_summary_text.delta",
    "reasoning_summary_text.done",
    "reasoning_summary_part.done", "output_item.done",
]  # fmt: skip
CALL = [
    "output_item.added",
    "function_call_arguments.delta",
    "function_call_arguments.done",
    "output_item.done",
]
CUSTOM = [
    "output_item.added",
    "custom_tool_call_input.delta",
    "custom_tool_call_input.done",
    "output_item.done",
]
OWN = ["output_item.added", "mcp_call.in_progress", "mcp_call_arguments.delta", "mcp_call_arguments.done"]
REFUSED = ["content_part.added", "refusal.delta", "refusal.done", "content_part.done"]

STORIES: dict[str, tuple[list[Event], list[str], str]] = {
    "text": ([TextDelta("a"), ChoiceFinished("stop"), Usage(1, 2, 3)], TEXT, "completed"),
    "nothing": ([ChoiceFinished("stop")], [kind for kind in TEXT if kind != "output_text.delta"],
        "completed"),
    "a thought and text": ([ReasoningDelta("h"), TextDelta("a"), ChoiceFinished("stop")], THOUGHT + TEXT,
        "completed"),
    "only a thought": ([ReasoningDelta("h"), ChoiceFinished("stop")],
        [*THOUGHT, *(kind for kind in TEXT if kind != "output_text.delta")], "completed"),
    "a call": ([ToolCallStart(0, "c", "f"), ToolCallArgumentsDelta(0, "{}"), ChoiceFinished("tool_calls")],
        CALL, "completed"),
    "text, calls, text": (
        [TextDelta("a"), ToolCallStart(0, "c", "f"), ToolCallArgumentsDelta(0, "{}"), ToolCallStart(1, "d",
            "f"), ToolCallArgumentsDelta(1, "{}"), TextDelta("b"), ChoiceFinished("tool_calls")],
        TEXT + CALL + CALL + TEXT,
        "completed",
    ),
    "two calls in pieces": (
        [ToolCallStart(0, "c", "f"), ToolCallStart(1, "d", "f"), ToolCallArgumentsDelta(1, "{}"),
            ToolCallArgumentsDelta(0, "{}"), ToolCallArgumentsDelta(0, " "), TextDelta("b"),
            ChoiceFinished("tool_calls")],
        [*CALL, *CALL, *TEXT],
        "completed",
    ),
    "a custom call, then another": (
        [ToolCallStart(0, "c", "sql", custom=True), ToolCallArgumentsDelta(0, "select 1"),
            ToolCallStart(1, "d", "f"), ToolCallArgumentsDelta(1, "{}"), ChoiceFinished("tool_calls")],
        CUSTOM + CALL,
        "completed",
    ),
    "a refusal after a text": ([TextDelta("a"), RefusalDelta("no"), ChoiceFinished("stop")],
        [*TEXT[:5], *REFUSED, TEXT[5]], "completed"),
    "our own tools in parallel": (
        [
            ServerToolCall("x", "w__get", "{}", "w", "get"), ServerToolCall("y", "run", "{}"),
            ServerToolResult("y", "run", "bad", False, 0.1),
            ServerToolResult("x", "w__get", "page", True, 0.1), TextDelta("a"), ChoiceFinished("stop"),
        ],
        [*OWN, "mcp_call.completed", "output_item.done", *OWN, "mcp_call.failed", "output_item.done", *TEXT],
        "completed",
    ),
    "cut short": ([TextDelta("a"), ChoiceFinished("length")], TEXT, "incomplete"),
    "cut in a thought": ([ReasoningDelta("h"), ChoiceFinished("length")], THOUGHT, "incomplete"),
    "cut in a call": ([ToolCallStart(0, "c", "f"), ToolCallArgumentsDelta(0, '{"a'),
        ChoiceFinished("length")], CALL, "incomplete"),
    "filtered": ([TextDelta("a"), ChoiceFinished("content_filter")], TEXT, "incomplete"),
}  # fmt: skip


@pytest.mark.parametrize(("events", "kinds", "status"), STORIES.values(), ids=STORIES)
def test_event_sequences(events, kinds, status):
    """Each sequence has OpenAI's events in OpenAI's order, and the whole response equals the stream's
    last."""
    request = turn(tools=[{"type": "function", "name": "f"}, {"type": "custom", "name": "sql"}])
    text, response = encode(request, *events, StreamDone())
    happened = read(text)
    assert [event["type"] for event in happened[:2]] == ["response.created", "response.in_progress"]
    first = judge(Response, happened[0]["response"])
    assert (first.id, first.status, first.output, first.created_at) == (ID, "in_progress", [], 1700000000)
    assert short(happened) == kinds
    assert happened[-1]["type"] == f"response.{status}"
    assert happened[-1]["response"] == response == responses.response(request, events)
    assert judge(Response, response).status == status
    done = [event["item"] for event in happened if event["type"] == "response.output_item.done"]
    assert done == response["output"]


def test_an_incomplete_response_has_its_reason():
    """The truncated item and the response are incomplete, and the response has the reason."""
    response = responses.response(turn(), [TextDelta("a"), ChoiceFinished("length"), Usage(1, 2, 3)])
    assert response["incomplete_details"] == {"reason": "max_output_tokens"}
    assert response["output"][-1]["status"] == "incomplete"
    assert responses.response(turn(), [ChoiceFinished("content_filter")])["incomplete_details"] == {
        "reason": "content_filter"
    }


def test_usage():
    """Usage has the Responses API's field names."""
    counts = Usage(10, 5, 15, {"cached_tokens": 4, "text_tokens": 3}, {"reasoning_tokens": 2})
    assert responses.response(turn(), [counts, ChoiceFinished("stop")])["usage"] == {
        "input_tokens": 10,
        "input_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 0},
        "output_tokens": 5,
        "output_tokens_details": {"reasoning_tokens": 2},
        "total_tokens": 15,
    }


def test_unreported_usage_is_estimated():
    """The estimate covers the prompt and the model's output, in any kind of item."""
    estimated = replace(turn(), token_estimate=TokenEstimate(20))
    events: list[Event] = [
        ReasoningDelta("abcd"),
        TextDelta("efghij"),
        ToolCallStart(0, "c", "f"),
        ToolCallArgumentsDelta(0, "{}"),
        ChoiceFinished("tool_calls"),
    ]
    usage = responses.response(estimated, events)["usage"]
    assert (usage["input_tokens"], usage["output_tokens"], usage["total_tokens"]) == (20, 3, 23)


def test_the_response_repeats_the_request():
    """Every field that the request set is in the response."""
    written = {
        "instructions": "be brief", "max_output_tokens": 9, "metadata": {"a": "b"}, "temperature": 0.5,
        "top_p": 0.9,
        "parallel_tool_calls": False, "previous_response_id": "resp_1", "prompt_cache_key": "k",
        "store": False,
        "reasoning": {"effort": "low", "summary": "auto"}, "safety_identifier": "s", "user": "u",
        "truncation": "auto",
        "text": {"format": {"type": "json_schema", "name": "n", "schema": {}, "strict": True},
            "verbosity": "low"},
        "top_logprobs": 1, "max_tool_calls": 2,
    }  # fmt: skip
    response = responses.response(turn(**written), [ChoiceFinished("stop")])
    judge(Response, response)
    assert {key: response[key] for key in written} == written


def test_log_probabilities_only_on_request():
    """Log probabilities are in the deltas and in the text, if the client requests them."""
    text, response = encode(turn(top_logprobs=1), TextDelta("a", logprobs=LOGPROBS), ChoiceFinished("stop"))
    events = {event["type"]: event for event in read(text)}
    chance = events["response.output_text.delta"]["logprobs"][0]
    assert chance == {"token": "a", "logprob": -1.0, "top_logprobs": [{"token": "b", "logprob": -2.0}]}
    judge(Response, response)
    logprob = response["output"][0]["content"][0]["logprobs"][0]
    assert (logprob["token"], logprob["bytes"], logprob["top_logprobs"][0]["bytes"]) == ("a", [97], [98])
    text, _ = encode(turn(), TextDelta("a", logprobs=LOGPROBS), ChoiceFinished("stop"))
    assert 'logprob"' not in text


def test_encrypted_reasoning_returns():
    """Reasoning is encrypted on request, and its item alone restores it."""
    response = responses.response(
        turn(include=["reasoning.encrypted_content"]),
        [ReasoningDelta("hm"), TextDelta("a"), ChoiceFinished("stop")],
    )
    judge(Response, response)
    thought, written = response["output"]
    again = turn(input=[{**thought, "summary": []}, written])
    assert again.messages == [{"role": "assistant", "content": "a", "reasoning_content": "hm"}]
    assert (
        "encrypted_content"
        not in responses.response(turn(), [ReasoningDelta("hm"), ChoiceFinished("stop")])["output"][0]
    )


FAILURES = {
    "the server": (UpstreamError("cut"), "server_error", "upstream_error"),
    "a limit": (OverloadedError("slow", status=429), "rate_limit_exceeded", "overloaded"),
    "the request": (RequestError("bad", param="input"), "invalid_prompt", None),
}


@pytest.mark.parametrize(("error", "code", "client_code"), FAILURES.values(), ids=FAILURES)
def test_a_failed_response(error, code, client_code):
    """A failed response has its partial output and a failed status, and then an error makes the clients
    raise."""
    text, response = encode(
        turn(),
        TextDelta("a"),
        ToolCallStart(0, "c", "f"),
        ToolCallArgumentsDelta(0, "{"),
        StreamFailed(error),
    )
    *_, failed, last = read(text)
    assert response is None
    assert failed["type"] == "response.failed"
    assert failed["response"]["error"]["code"] == code
    assert failed["response"]["error"]["message"] == error.message
    assert [item["status"] for item in failed["response"]["output"]] == ["completed", "incomplete"]
    assert (last["type"], last["code"], last["message"]) == ("error", client_code, error.message)
    assert last["error"] == error_object(error)
    with pytest.raises(type(error)):
        responses.response(turn(), [TextDelta("a"), StreamFailed(error)])


def test_a_failure_before_any_output():
    """Even a stream that fails first starts with response.created."""
    encoder = responses.Encoder(turn())
    events = read(encoder.error_event(UpstreamError("late")).decode())
    assert [event["type"] for event in events] == [
        "response.created", "response.in_progress", "response.failed", "error",
    ]  # fmt: skip
    assert encoder.close() == []


WORDS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=3)


@st.composite
def answers(draw):
    """Draw any response that keeps the contract of `qproxy.wire`: calls in parts, mixed with text and
    reasoning."""
    events: list[Event] = []
    left: dict[int, list[str]] = {}
    calls = 0
    for kind in draw(st.lists(st.sampled_from("trcaaa"), max_size=25)):
        if kind == "t":
            events.append(TextDelta(draw(WORDS)))
        elif kind == "r":
            events.append(ReasoningDelta(draw(WORDS)))
        elif kind == "c":
            events.append(ToolCallStart(calls, f"call_{calls}", "f"))
            left[calls] = ['{"', "a", '":', "1", "}"]
            calls += 1
        elif any(left.values()):
            index = draw(st.sampled_from([index for index, pieces in left.items() if pieces]))
            events.append(ToolCallArgumentsDelta(index, left[index].pop(0)))
    events += [ToolCallArgumentsDelta(index, piece) for index, pieces in left.items() for piece in pieces]
    return [*events, ChoiceFinished("tool_calls" if calls else "stop")]


@given(answers())
def test_any_response(events):
    """One item is open at a time; a done item equals its deltas; no call, text or reasoning is lost."""
    text, response = encode(turn(), *events)
    happened = read(text, validated=False)
    opened: list = []
    written = ""
    for event in happened[2:-1]:
        kind = event["type"]
        if kind == "response.output_item.added":
            assert event["output_index"] == len(opened)
            opened.append(event["item"]["id"])
            written = ""
        elif kind == "response.output_item.done":
            assert event["item"]["id"] == opened[-1]
            assert response["output"][len(opened) - 1] == event["item"]
        else:
            assert (event["item_id"], event["output_index"]) == (opened[-1], len(opened) - 1)
            written += event.get("delta", "")
            if kind.endswith(("text.done", "arguments.done")):
                assert event.get("text", event.get("arguments")) == written
    calls = [item for item in response["output"] if item["type"] == "function_call"]
    assert [(call["call_id"], call["arguments"]) for call in calls] == [
        (event.id, '{"a":1}') for event in events if isinstance(event, ToolCallStart)
    ]
    texts = [part["text"] for item in response["output"] for part in item.get("content", ())]
    assert "".join(texts) == "".join(event.text for event in events if isinstance(event, TextDelta))
    thoughts = [part["text"] for item in response["output"] for part in item.get("summary", ())]
    assert "".join(thoughts) == "".join(event.text for event in events if isinstance(event, ReasoningDelta))
