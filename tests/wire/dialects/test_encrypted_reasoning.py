"""Ciphertext of a model's reasoning, in any delta, is forwarded unchanged to the client and back."""

import json
from typing import Any

import pytest

from qproxy.wire import sse, tool_calls
from qproxy.wire.dialects import DIALECTS, UpstreamTarget
from qproxy.wire.endpoints import anthropic, chat, responses
from qproxy.wire.events import EncryptedReasoning, Turn
from qproxy.wire.pipeline import Pipeline
from tests.defaults import DECODE_LIMITS
from tests.wire.tool_call_contract import check

CIPHER = "v4:gAAAA+/=é"
TARGET = UpstreamTarget("https://h/compatible-mode/v1", "m")
TOOLS = ({"type": "function", "function": {"name": "get", "parameters": {"type": "object"}}},)
CALL = {"index": 0, "id": "c1", "type": "function", "function": {"name": "get", "arguments": "{}"}}
SUMMARY = ({"role": "assistant", "content": None, "reasoning_content": "sum"}, None)
TEXT = ({"content": "Hi"}, None)
END = ({"content": ""}, "stop")
PLACES = {
    "alone": [SUMMARY, ({"content": None, "encrypted_content": CIPHER}, None), TEXT, END],
    "in pieces": [SUMMARY, ({"encrypted_content": CIPHER[:4]}, None),
        ({"encrypted_content": CIPHER[4:]}, None), TEXT, END],
    "with the summary": [({**SUMMARY[0], "encrypted_content": CIPHER}, None), TEXT, END],
    "with the text": [SUMMARY, ({"content": "Hi", "encrypted_content": CIPHER}, None), END],
    "after the text": [SUMMARY, TEXT, ({"content": "", "encrypted_content": CIPHER}, None), END],
    "with the finish reason": [SUMMARY, TEXT, ({"content": "", "encrypted_content": CIPHER}, "stop")],
    "after the finish reason": [SUMMARY, TEXT, END, ({"encrypted_content": CIPHER}, None)],
    "before a call": [SUMMARY, ({"encrypted_content": CIPHER}, None), ({"tool_calls": [CALL]}, None),
        ({}, "tool_calls")],
    "with a call": [SUMMARY, ({"encrypted_content": CIPHER, "tool_calls": [CALL]}, None), ({}, "tool_calls")],
    "without a summary": [({"encrypted_content": CIPHER}, None), TEXT, END],
}  # fmt: skip


def turn(**more):
    params = {"thinking_display": "summarized"}
    return Turn(
        **{"id": "i", "created": 0, "model": "m", "messages": (), "tools": TOOLS, "params": params, **more}
    )


def choice(delta, reason, number=0):
    return {"index": number, "delta": delta, "finish_reason": reason}


def frames(dialect, chunks):
    """Return the bytes of a stream's events, each chunk a list of choices."""
    for choices in chunks:
        if dialect == "dashscope":
            native = [
                {"index": c["index"], "message": c["delta"], "finish_reason": c["finish_reason"]}
                for c in choices
            ]
            yield {"output": {"choices": native}, "request_id": "r"}
        else:
            yield {"id": "x", "object": "chat.completion.chunk", "choices": choices}


def decode(dialect, chunks, request_turn):
    """Return the events after `tool_calls`."""
    stages = Pipeline(
        sse.Decoder(), DIALECTS[dialect].decoder(TARGET), tool_calls.build_pipeline(request_turn)
    )
    data = b"".join(sse.encode(json.dumps(frame).encode()) for frame in frames(dialect, chunks))
    data += b"" if dialect == "dashscope" else b"data: [DONE]\n\n"
    return [*stages.feed(data), *stages.close()]


@pytest.mark.parametrize("dialect", ["compatible", "dashscope"])
@pytest.mark.parametrize("deltas", PLACES.values(), ids=PLACES)
def test_ciphertext_passes_from_any_delta(dialect, deltas):
    """The client receives the ciphertext whole, streamed and folded, and the stream keeps its contract."""
    events = decode(dialect, [[choice(*delta)] for delta in deltas], turn())
    check(events)
    assert "".join(event.text for event in events if isinstance(event, EncryptedReasoning)) == CIPHER
    assert chat.response(turn(), events)["choices"][0]["message"]["encrypted_content"] == CIPHER
    encoder = chat.Encoder(turn())
    text = b"".join([piece for event in events for piece in encoder.feed(event)] + encoder.close()).decode()
    pieces = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    sent = [piece["choices"][0]["delta"].get("encrypted_content", "") for piece in pieces]
    assert "".join(sent) == CIPHER
    assert pieces[-1]["choices"][0]["finish_reason"] in ("stop", "tool_calls")


@pytest.mark.parametrize("deltas", PLACES.values(), ids=PLACES)
def test_ciphertext_returns_through_responses(deltas):
    """The reasoning item has it, streamed and whole, and the items of one turn return it on their message."""
    fields = {"model": "m", "input": "hi", "include": ["reasoning.encrypted_content"]}
    options: dict[str, Any] = {
        "id": "resp_" + "0" * 24,
        "created": 0,
        **DECODE_LIMITS,
    }
    request = responses.decode(fields, **options)
    events = decode("compatible", [[choice(*delta)] for delta in deltas], turn())
    whole = responses.response(request, events)
    encoder = responses.Encoder(request)
    for event in events:
        encoder.feed(event)
    encoder.close()
    assert encoder.response is not None
    assert encoder.response["output"] == whole["output"]
    (sealed,) = [item for item in whole["output"] if item.get("encrypted_content") == CIPHER]
    assert sealed["type"] == "reasoning"
    following = [{"role": "user", "content": "hi"}, *whole["output"], {"role": "user", "content": "so?"}]
    again = responses.decode({**fields, "input": following}, **options)
    _, answer_message, _ = again.messages
    assert answer_message["encrypted_content"] == CIPHER
    assert answer_message.get("reasoning_content", "sum") == "sum"


@pytest.mark.parametrize("deltas", PLACES.values(), ids=PLACES)
def test_ciphertext_returns_through_messages(deltas):
    """The signature of a thinking block carries it, streamed and whole, and returns it on its message."""
    hello = {"role": "user", "content": "hi"}
    fields = {"model": "m", "max_tokens": 9, "messages": [hello]}
    options: dict[str, Any] = {"id": "msg_1", "created": 0, **DECODE_LIMITS}
    request = anthropic.decode(fields, **options)
    events = decode("compatible", [[choice(*delta)] for delta in deltas], turn())
    whole = anthropic.response(request, events)
    encoder = anthropic.Encoder(request)
    text = b"".join([piece for event in events for piece in encoder.feed(event)] + encoder.close()).decode()
    signatures = [block["signature"] for block in whole["content"] if block["type"] == "thinking"]
    assert [json.dumps(one, ensure_ascii=False)[1:-1] in text for one in signatures] == [True] * len(
        signatures
    )
    following = [hello, {"role": "assistant", "content": whole["content"]}, hello]
    again = anthropic.decode({**fields, "messages": following}, **options)
    assert again.messages[1]["encrypted_content"] == CIPHER


def test_each_choice_has_its_own_ciphertext():
    """Ciphertext belongs to the choice with which it was received."""
    chunks = [
        [choice({"content": "a", "encrypted_content": "one"}, None),
            choice({"content": "b", "encrypted_content": "two"}, None, 1)],
        [choice({}, "stop"), choice({}, "stop", 1)],
    ]  # fmt: skip
    request_turn = turn(params={"n": 2})
    body = chat.response(request_turn, decode("compatible", chunks, request_turn))
    assert [c["message"]["encrypted_content"] for c in body["choices"]] == ["one", "two"]


@pytest.mark.parametrize("dialect", ["compatible", "dashscope"])
def test_a_whole_response_has_ciphertext(dialect):
    """The message of a whole body carries it."""
    message = {"role": "assistant", "content": "Hi", "reasoning_content": "sum", "encrypted_content": CIPHER}
    body = {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
    events = DIALECTS[dialect].response({"output": body} if dialect == "dashscope" else body, TARGET)
    normalizer = tool_calls.build_pipeline(turn())
    folded = [out for event in events for out in normalizer.feed(event)]
    assert chat.response(turn(), [*folded, *normalizer.close()])["choices"][0]["message"] == {
        **message,
        "refusal": None,
    }
