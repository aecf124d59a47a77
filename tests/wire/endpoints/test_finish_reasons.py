"""An upstream's finish reason in every API: a normal one is mapped, any other one is a failure."""

import json
from typing import Any

import pytest

from qproxy.wire import sse, tool_calls
from qproxy.wire.dialects import DIALECTS, finish_reasons
from qproxy.wire.endpoints import ENDPOINTS
from qproxy.wire.errors import QproxyError
from qproxy.wire.pipeline import Pipeline
from tests.defaults import decoder
from tests.wire.pipeline import TARGET

TEXT = "Half of it"
USER = [{"role": "user", "content": "x"}]
BODIES: dict[str, dict[str, Any]] = {
    "/chat/completions": {"messages": USER},
    "/completions": {"prompt": "x"},
    "/responses": {"input": "x"},
    "/messages": {"messages": USER, "max_tokens": 9},
}
WITH_REASON = [endpoint for endpoint in ENDPOINTS if endpoint.path != "/responses/compact"]
"""A compaction alone is an object without a status; `tests/wire/test_compaction.py` has its failures."""
MEANINGS = {
    "stop": {"/responses": "completed", "/messages": "end_turn"},
    "length": {"/responses": "max_output_tokens", "/messages": "max_tokens"},
    "content_filter": {"/responses": "content_filter", "/messages": "refusal"},
    "tool_calls": {
        "/chat/completions": "stop",
        "/completions": "stop",
        "/responses": "completed",
        "/messages": "end_turn",
    },
}
"""The meaning of reasons without OpenAI's name; without calls `tool_calls` is `stop`."""
BAD = [*finish_reasons.FAILING_REASONS, "new_reason", "completed", "ok", "stop!", "tool_use_2"]


def turn_of(endpoint, stream):
    body = {"model": "m", "stream": stream, **BODIES[endpoint.path]}
    return decoder(endpoint)(
        body, id=f"{endpoint.id_prefix}{'0' * 24}", created=1, default_model=None, max_messages=9
    )


def events_of(dialect, turn, reason, *, is_end=True):
    """Return the events of a response that ends with a reason, whole or streamed as the turn requests."""
    message = {"role": "assistant", "content": TEXT}
    native = dialect == "dashscope"
    choice = {"index": 0, "delta" if turn.stream and not native else "message": message}
    choices = {"choices": [{**choice, "finish_reason": reason}]}
    body = {"output": choices} if native else choices
    stages = tool_calls.build_pipeline(turn)
    if not turn.stream:
        return [*stages.feed_many(DIALECTS[dialect].response(body, TARGET)), *stages.close()]
    end = {"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]}
    first = body if native else {"choices": [{**choice, "finish_reason": None}]}
    data = b"".join(sse.encode(json.dumps(one).encode()) for one in ([first] if native else [first, end]))
    data += b"" if native or not is_end else b"data: [DONE]\n\n"
    stages = Pipeline(sse.Decoder(), DIALECTS[dialect].decoder(TARGET), stages)
    return [*stages.feed(data), *stages.close()]


def outcome(endpoint, body):
    """Return the finish reason of a response in its API."""
    if endpoint.path == "/responses":
        return body["incomplete_details"]["reason"] if body["incomplete_details"] else body["status"]
    return body["stop_reason"] if endpoint.path == "/messages" else body["choices"][0]["finish_reason"]


def streamed(endpoint, turn, events):
    """Return (finish reason, failed, text) of a streamed response."""
    encoder = endpoint.encoder(turn)
    parts = [part for event in events for part in encoder.feed(event)]
    text = b"".join([*parts, *encoder.close()]).decode()
    frames = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    reasons = []
    for frame in frames:
        if endpoint.path == "/responses":
            done = frame.get("type") in ("response.completed", "response.incomplete")
            reasons += [outcome(endpoint, frame["response"])] if done else []
        elif endpoint.path == "/messages":
            reasons += [frame["delta"]["stop_reason"]] if frame["type"] == "message_delta" else []
        else:
            reasons += [c["finish_reason"] for c in frame.get("choices", ()) if c["finish_reason"]]
    failed = any(frame.get("error") or frame.get("type") == "error" for frame in frames)
    return reasons, failed, text


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("endpoint", WITH_REASON, ids=lambda endpoint: endpoint.path)
def test_a_normal_reason_in_every_api(endpoint, dialect):
    """Each normal reason of an upstream has its counterpart in each API, streamed and whole."""
    for name, reason in finish_reasons.FINISH_REASONS.items():
        expected = MEANINGS[reason].get(endpoint.path, reason)
        for spelling in (name, name.upper()):
            turn = turn_of(endpoint, stream=False)
            body = endpoint.response(turn, events_of(dialect, turn, spelling))
            assert outcome(endpoint, body) == expected, spelling
            turn = turn_of(endpoint, stream=True)
            reasons, failed, text = streamed(endpoint, turn, events_of(dialect, turn, spelling))
            assert (reasons, failed) == ([expected], False), spelling
            assert TEXT in text


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("endpoint", WITH_REASON, ids=lambda endpoint: endpoint.path)
def test_any_other_reason_is_an_error(endpoint, dialect):
    """A failing or unknown reason is an error in each API, after the text before it, and no finish reason."""
    for name in BAD:
        turn = turn_of(endpoint, stream=False)
        with pytest.raises(QproxyError) as failure:
            endpoint.response(turn, events_of(dialect, turn, name))
        assert name == "error_finish" or name in failure.value.message
        turn = turn_of(endpoint, stream=True)
        reasons, failed, text = streamed(endpoint, turn, events_of(dialect, turn, name))
        assert (reasons, failed) == ([], True), name
        assert (TEXT in text, name in text or name == "error_finish") == (True, True), name


@pytest.mark.parametrize("endpoint", WITH_REASON, ids=lambda endpoint: endpoint.path)
@pytest.mark.parametrize("reason", ["", "null", None])
def test_an_empty_reason_in_every_api(endpoint, reason):
    """It is a successful end before `[DONE]` and of a whole body, and none if the connection just ends."""
    expected = MEANINGS["stop"].get(endpoint.path, "stop")
    turn = turn_of(endpoint, stream=False)
    for dialect in DIALECTS:
        assert outcome(endpoint, endpoint.response(turn, events_of(dialect, turn, reason))) == expected
    turn = turn_of(endpoint, stream=True)
    assert streamed(endpoint, turn, events_of("compatible", turn, reason))[:2] == ([expected], False)
    is_end = reason == ""
    cut = streamed(endpoint, turn, events_of("compatible", turn, reason, is_end=False))[:2]
    assert cut == (([expected], False) if is_end else ([], True))
    assert streamed(endpoint, turn, events_of("dashscope", turn, reason))[:2] == ([], True)
