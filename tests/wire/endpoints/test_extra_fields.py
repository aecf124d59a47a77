"""Unknown fields reach a chat client, streamed and whole, and never replace the contract's."""

import base64
import json
from typing import Any

from qproxy.wire.dialects import DIALECTS
from qproxy.wire.endpoints import chat
from qproxy.wire.endpoints.extra_fields import fold_fields
from tests.wire.pipeline import DONE, TARGET, call, chunk, decoded, events, stream, texts


def chunks_of(*items, **body):
    """Return the chunks of a stream that a chat client receives, as data."""
    turn = decoded({"stream": True, **body})
    encoder = chat.Encoder(turn)
    out = [part for event in events([stream(*items)], turn) for part in encoder.feed(event)] + encoder.close()
    lines = b"".join(out).decode().split("\n\n")
    return [json.loads(line[6:]) for line in lines if line.startswith("data: {")]


def whole_of(*items, **body):
    turn = decoded(body)
    return chat.response(turn, events([stream(*items)], turn))


def with_choice_fields(item, **fields):
    item["choices"][0] |= fields
    return item


STREAM = (
    chunk({"role": "assistant", "content": ""}, system_fingerprint="fp", provider="p"),
    texts("Hi"),
    with_choice_fields(chunk({"content": "!", "x_score": 0}), token_ids=[1, 2]),
    with_choice_fields(
        chunk({"annotations": [{"n": 1}]}, finish="stop", system_fingerprint="fp", timings={"ms": 3}),
        token_ids=[3],
        stop_reason=151645,
    ),
    {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3, "cost": 0.5}},
    DONE,
)


def test_unknown_fields_reach_a_stream():
    """Fields of the delta, the choice, the chunk and the usage are in the stream, each once."""
    chunks = chunks_of(*STREAM, stream_options={"include_usage": True})
    deltas = [choice["delta"] for item in chunks for choice in item["choices"]]
    choices = [choice for item in chunks for choice in item["choices"]]
    assert [delta["x_score"] for delta in deltas if "x_score" in delta] == [0]
    assert [delta["annotations"] for delta in deltas if "annotations" in delta] == [[{"n": 1}]]
    assert [number for choice in choices for number in choice.get("token_ids", ())] == [1, 2, 3]
    assert [choice["stop_reason"] for choice in choices if "stop_reason" in choice] == [151645]
    assert [item["system_fingerprint"] for item in chunks if "system_fingerprint" in item] == ["fp"]
    assert [item["timings"] for item in chunks if "timings" in item] == [{"ms": 3}]
    assert chunks[-1]["usage"]["cost"] == 0.5
    assert all(item["id"] == "chatcmpl-1" for item in chunks)


def test_unknown_fields_reach_a_whole_response():
    """A stream folded into one response has the same fields at the same levels."""
    body = whole_of(*STREAM)
    assert (body["system_fingerprint"], body["provider"], body["timings"]) == ("fp", "p", {"ms": 3})
    (choice,) = body["choices"]
    assert (choice["token_ids"], choice["stop_reason"]) == ([1, 2, 3], 151645)
    assert (choice["message"]["x_score"], choice["message"]["annotations"]) == (0, [{"n": 1}])
    assert body["usage"]["cost"] == 0.5


def test_a_whole_body_keeps_its_unknown_fields():
    """The unknown fields of a whole body are forwarded at their levels."""
    message = {"role": "assistant", "content": "Hi", "audio": {"id": "a", "data": "UklG", "transcript": "Hi"}}
    choice = {"index": 0, "message": message, "finish_reason": "stop", "stop_reason": "x"}
    found = DIALECTS["compatible"].response({"id": "u", "choices": [choice], "service_tier": "flex"}, TARGET)
    body = chat.response(decoded({}), found)
    assert body["service_tier"] == "flex"
    assert body["choices"][0]["stop_reason"] == "x"
    assert body["choices"][0]["message"]["audio"] == message["audio"]


def test_the_audio_of_omni_models_is_forwarded():
    """Audio deltas are streamed unchanged; a whole response joins their base64 data and transcripts."""
    first, second = b"RIFF\x01", b"\x02\x03"
    deltas: list[dict[str, Any]] = [
        {"content": None, "audio": {"id": "audio_1", "data": base64.b64encode(first).decode()}},
        {"audio": {"transcript": "Hi"}},
        {"audio": {"data": base64.b64encode(second).decode(), "transcript": " you"}},
    ]
    items = (*map(chunk, deltas), chunk(finish="stop"), DONE)
    sent = [c["delta"]["audio"] for i in chunks_of(*items) for c in i["choices"] if "audio" in c["delta"]]
    assert sent == [delta["audio"] for delta in deltas]
    audio = whole_of(*items)["choices"][0]["message"]["audio"]
    assert base64.b64decode(audio.pop("data")) == first + second
    assert audio == {"id": "audio_1", "transcript": "Hi you"}


def test_content_parts_without_text_are_forwarded():
    """Images and audio among the parts of a content reach the client, beside the text."""
    picture = {"image": "https://example.com/1.png"}
    sound = {"audio": {"data": "UklG"}}
    parts = [{"text": "Look:"}, picture, sound]
    output = {"choices": [{"message": {"role": "assistant", "content": parts}, "finish_reason": "stop"}]}
    native = {"output": output, "usage": {}, "request_id": "r", "trace": "t"}
    body = chat.response(decoded({}), DIALECTS["dashscope"].response(native, TARGET))
    message = body["choices"][0]["message"]
    assert message["content"] == "Look:"
    assert (message["content_parts"], message["audio"], body["trace"]) == ([picture], sound["audio"], "t")
    chunks = chunks_of(chunk({"content": parts}, finish="stop"), DONE)
    deltas = [choice["delta"] for item in chunks for choice in item["choices"]]
    assert [delta["content_parts"] for delta in deltas if "content_parts" in delta] == [[picture]]


def test_tool_calls_keep_the_contracts_fields_only():
    """Unknown keys of a `tool_calls` entry are dropped; those beside it are forwarded."""
    item = call(0, "call_1", "get_weather", "{}")
    item["choices"][0]["delta"] |= {"x_note": "n"}
    item["choices"][0]["delta"]["tool_calls"][0] |= {"x_entry": 1}
    body = whole_of(item, chunk(finish="tool_calls"), DONE)
    message = body["choices"][0]["message"]
    assert message["x_note"] == "n"
    assert message["tool_calls"][0].keys() == {"id", "type", "function"}


def test_empty_and_contract_fields_are_not_extra():
    """Null and empty unknown fields are dropped, and none replaces a field of the contract."""
    item = chunk({"content": "Hi", "audio": None, "annotations": []}, id="other", object="x", qproxy={"x": 1})
    body = whole_of(item, chunk(finish="stop"), DONE)
    assert body.keys() == {"id", "object", "created", "model", "choices", "usage"}
    assert body["id"] == "chatcmpl-1"
    assert body["choices"][0]["message"].keys() == {"role", "content", "refusal"}


def test_unreported_usage_is_null():
    """Without usage from the upstream there are no zeros: null, streamed and whole."""
    items = (texts("Hi"), chunk(finish="stop"), DONE)
    assert whole_of(*items)["usage"] is None
    assert chunks_of(*items, stream_options={"include_usage": True})[-1]["usage"] is None


def test_fold_fields():
    """Texts and lists are joined, objects folded to a bounded depth, identities and other values replaced."""
    assert fold_fields([{"a": "x", "id": "1", "n": 1}, {"a": "y", "id": "1", "n": 2}]) == {
        "a": "xy",
        "id": "1",
        "n": 2,
    }
    assert fold_fields([{"l": [1], "o": {"t": "a"}}, {"l": [2], "o": {"t": "b"}}]) == {
        "l": [1, 2],
        "o": {"t": "ab"},
    }
    assert fold_fields([{"data": "not base64!"}, {"data": "?"}]) == {"data": "not base64!?"}
    deep: dict[str, object] = {}
    for _ in range(500):
        deep = {"d": deep}
    assert fold_fields([deep, deep]) == deep
