"""The ends of several choices, in complete and truncated streams."""

import json

import pytest

from qproxy.wire import sse, tool_calls
from qproxy.wire.dialects import UpstreamTarget, dashscope, openai
from qproxy.wire.errors import UpstreamError
from qproxy.wire.events import ChoiceFinished, StreamDone, StreamFailed, TextDelta, Turn
from qproxy.wire.pipeline import Pipeline

TARGET = UpstreamTarget("http://x/v1", "m")


def chunk(choice, reason=None, **delta):
    return {"choices": [{"index": choice, "delta": delta, "finish_reason": reason}]}


ROLES = [chunk(0, role="assistant"), chunk(1, role="assistant", content="")]
FIRST = [chunk(0, content="a"), chunk(0, "stop")]
SECOND = [chunk(1, content="b"), chunk(1, "length")]


def events(chunks, *, done, n=2):
    turn = Turn(id="i", created=0, model="m", messages=[], params={"n": n})
    stages = Pipeline(sse.Decoder(), openai.Decoder(TARGET), tool_calls.build_pipeline(turn))
    data = "".join(f"data: {json.dumps(each)}\n\n" for each in chunks) + ("data: [DONE]\n\n" if done else "")
    return [*stages.feed(data.encode()), *stages.close()]


ENDS = {
    "both end": ([*ROLES, *FIRST, *SECOND], [(0, "stop"), (1, "length")]),
    "one sends nothing": ([*ROLES, *FIRST], [(0, "stop"), (1, "stop")]),
    "one sends nothing, and the other has no reason": ([*ROLES, FIRST[0]], [(0, "stop"), (1, "stop")]),
    "a server that knows no n": (FIRST, [(0, "stop")]),
}


@pytest.mark.parametrize(("chunks", "expected"), ENDS.values(), ids=ENDS.keys())
def test_choices_that_end_with_done(chunks, expected):
    """[DONE] ends every choice that was started, even one without content beside others."""
    found = events(chunks, done=True)
    assert [(end.choice, end.reason) for end in found if isinstance(end, ChoiceFinished)] == expected
    assert found[-1].__class__ is StreamDone


CUTS = {"one was started": [*ROLES, *FIRST], "one never came": FIRST, "none has ended": [*ROLES, FIRST[0]]}


@pytest.mark.parametrize("chunks", CUTS.values(), ids=CUTS.keys())
def test_choices_of_a_truncated_stream(chunks):
    """If a choice has no content in a truncated stream, the end is an error after the received events."""
    found = events(chunks, done=False)
    assert TextDelta("a") in found
    assert isinstance(found[-1], StreamFailed)
    assert not any(isinstance(event, ChoiceFinished) and event.choice == 1 for event in found)


def native(choice, reason, content):
    message = {"role": "assistant", "content": content}
    return {"output": {"choices": [{"index": choice, "message": message, "finish_reason": reason}]}}


@pytest.mark.parametrize(("last", "end"), [("null", StreamFailed), ("stop", StreamDone)])
def test_choices_of_the_native_api(last, end):
    """A native stream has no end marker: it is successful only if every choice had a finish reason."""
    turn = Turn(id="i", created=0, model="m", messages=[], params={"n": 2})
    stages = Pipeline(sse.Decoder(), dashscope.Decoder(TARGET), tool_calls.build_pipeline(turn))
    chunks = [native(0, "stop", "a"), native(1, "null", "b"), native(1, last, "b")]
    data = "".join(f"data:{json.dumps(each)}\n\n" for each in chunks)
    assert isinstance([*stages.feed(data.encode()), *stages.close()][-1], end)


def test_an_error_before_the_last_choice_ends():
    """An error in the stream is forwarded until every requested choice has ended."""
    error = {"error": {"message": "gone"}}
    assert isinstance(events([*FIRST, error], done=False)[-1], StreamFailed)
    assert not any(isinstance(event, StreamFailed) for event in events([*FIRST, error], done=False, n=1))


BODIES = {
    "null": {"choices": None},
    "absent": {"id": "x"},
    "a null choice": {"choices": [None]},
    "an empty choice": {"choices": [{"index": 0}]},
    "a choice with an error": {"choices": [{"index": 0, "error": {"message": "gone"}}]},
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES.keys())
def test_a_body_without_a_choice(body):
    """A whole response without a choice is an error, not an empty response."""
    (found,) = openai.response(body, TARGET)
    assert isinstance(found, StreamFailed)
    assert isinstance(found.error, UpstreamError)
