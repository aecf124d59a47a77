"""Finish reasons of upstreams: normal ones become OpenAI's, failing and unknown ones are errors that name
them."""

import json

import pytest

from qproxy.wire.dialects import DIALECTS, finish_reasons
from qproxy.wire.endpoints import responses
from qproxy.wire.errors import QproxyError
from qproxy.wire.events import ChoiceFinished, StreamFailed, TextDelta
from tests.defaults import DECODE_LIMITS
from tests.wire.pipeline import DONE, TARGET, call, chunk, meaning, same, texts

HALF = "The first half"
CALL = call(0, "call_a", "get_weather", '{"city": "Paris"}')
FAILING = [*finish_reasons.FAILING_REASONS, "something_new", "Completed?"]


@pytest.mark.parametrize(("name", "reason"), finish_reasons.FINISH_REASONS.items())
def test_a_normal_reason_becomes_openais(name, reason):
    """Every normal reason is a successful end, in any case; without calls `tool_calls` is `stop`."""
    expected = "stop" if reason == "tool_calls" else reason
    assert meaning(texts(HALF), chunk(finish=name), DONE) == (HALF, "", [], expected)
    assert meaning(texts(HALF), chunk(finish=name.upper()), DONE)[3] == expected


@pytest.mark.parametrize("name", ["", "null", None])
def test_no_reason_before_the_end_marker_is_a_successful_end(name):
    """An empty, "null" or missing reason is a successful end if `[DONE]` follows."""
    assert meaning(texts(HALF), chunk(finish=name), DONE) == (HALF, "", [], "stop")


@pytest.mark.parametrize("name", FAILING)
def test_a_failing_or_unknown_reason_is_an_error(name):
    """The text before it is forwarded, the error follows and names the reason, and there is no finish
    reason."""
    choices, error = same(texts(HALF), chunk(finish=name), DONE)
    assert choices[0]["text"] == HALF
    assert choices[0]["reason"] is None
    assert name in error["message"] or name == "error_finish"


@pytest.mark.parametrize("reason", [{"type": "stop", "matched": 151645}, {"type": "eos"}])
def test_an_object_with_a_type_is_a_reason(reason):
    """SGLang's own finish reason is an object; its type is the reason."""
    assert meaning(texts(HALF), chunk(finish=reason), DONE) == (HALF, "", [], "stop")


@pytest.mark.parametrize("reason", [{"type": "abort", "message": "x"}, {"kind": "stop"}, 7, False, ["stop"]])
def test_a_reason_of_another_type_is_an_error(reason):
    """A finish reason that is not text is unknown, unless it is an object with a known type."""
    _, error = same(texts(HALF), chunk(finish=reason), DONE)
    assert error is not None
    assert "finish_reason" in error["message"]


def test_an_abort_after_a_call_is_an_error():
    """A call before `abort` is forwarded, but the response never ends with tool_calls."""
    choices, error = same(CALL, chunk(finish="abort"), DONE)
    assert choices[0]["calls"] == [["get_weather", '{"city": "Paris"}']]
    assert choices[0]["reason"] is None
    assert "abort" in error["message"]


def test_an_error_of_a_choice_is_an_error():
    """`choices[].error` fails the response with its own message, whatever the finish reason is."""
    failed = {"error": {"code": 502, "message": "Provider disconnected"}}
    for reason in ("error", "stop", None):
        item = chunk({"content": ""}, finish=reason)
        item["choices"][0] |= failed
        choices, error = same(texts(HALF), item, DONE)
        assert choices[0]["text"] == HALF
        assert error["message"] == "Provider disconnected"


@pytest.mark.parametrize("name", ["abort", "something_new"])
def test_a_whole_response_with_a_failing_reason_is_an_error(name):
    """A body that ends in a failing or unknown reason is no completion."""
    choice = {"index": 0, "message": {"role": "assistant", "content": HALF}, "finish_reason": name}
    events = DIALECTS["compatible"].response({"id": "up", "choices": [choice]}, TARGET)
    assert isinstance(events[-1], StreamFailed)
    assert name in events[-1].error.message


def test_a_native_response_with_a_failing_reason_is_an_error():
    """DashScope's native dialect uses the same table, whole and streamed."""
    output = {"choices": [{"message": {"role": "assistant", "content": HALF}, "finish_reason": "abort"}]}
    events = DIALECTS["dashscope"].response({"output": output}, TARGET)
    assert [type(event) for event in events] == [TextDelta, StreamFailed]
    data = "data:" + json.dumps({"output": output}) + "\n\n"
    choices, error = same(data.encode(), dialect="dashscope")
    assert choices[0]["text"] == HALF
    assert "abort" in error["message"]


def test_a_response_of_the_responses_api_fails_too():
    """The Responses API reports a failing reason as an error, not as `completed`."""
    body = {"model": "qwen", "input": "x"}
    turn = responses.decode(body, id="resp_1", created=1, keeps=False, before=(), known={}, **DECODE_LIMITS)
    events = [TextDelta(HALF), finish_reasons.finish_event("abort", 0)]
    encoder = responses.Encoder(turn)
    out = b"".join(piece for event in events for piece in encoder.feed(event))
    assert b"response.failed" in out
    with pytest.raises(QproxyError, match="abort"):
        responses.response(turn, events)


def test_the_retry_hint_fits_the_reason():
    """A timeout is never retried, an overloaded server soon."""
    errors = {
        name: finish_reasons.finish_event(name, 0) for name in ("timeout", "insufficient_system_resource")
    }
    statuses = [event.error.status for event in errors.values() if isinstance(event, StreamFailed)]
    assert statuses == [504, 503]
    assert finish_reasons.finish_event("eos", 2) == ChoiceFinished("stop", 2)
