"""OpenAI's chat endpoint: decoded requests, encoded chunks and whole responses."""

import json
from typing import Any

import pytest
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from qproxy.wire.endpoints import chat
from qproxy.wire.errors import RequestError, UpstreamError
from qproxy.wire.events import (
    ChoiceFinished,
    Event,
    ReasoningDelta,
    RefusalDelta,
    SearchInfo,
    ServerToolCall,
    ServerToolResult,
    StreamDone,
    StreamFailed,
    TextDelta,
    ToolCallArgumentsDelta,
    ToolCallStart,
    Turn,
    Usage,
)

USER = {"role": "user", "content": "hi"}


def decode(**fields):
    body = {"model": "qwen-plus", "messages": [USER], **fields}
    return chat.decode(body, id="chatcmpl-1", created=1700000000, default_model=None, max_messages=10_000)


def turn(**fields) -> Turn:
    return Turn(id="chatcmpl-1", created=1700000000, model="qwen-plus", messages=[USER], **fields)


def encode(turn, *events):
    encoder = chat.Encoder(turn)
    out = b"".join(piece for event in events for piece in encoder.feed(event)) + b"".join(encoder.close())
    return out.decode()


def chunks(text):
    """Return the parsed chunks of a stream that ends with [DONE]."""
    frames = text.split("\n\n")
    assert frames.pop() == ""
    assert frames.pop() == "data: [DONE]"
    parsed = [json.loads(frame.removeprefix("data: ")) for frame in frames]
    for chunk in parsed:
        ChatCompletionChunk.model_validate(chunk, strict=True)
    return parsed


def deltas(text):
    return [choice["delta"] for chunk in chunks(text) for choice in chunk["choices"]]


WRONG = {
    "not an object": ([], None, "JSON object"),
    "no model": ({"messages": [USER]}, "model", "model parameter"),
    "empty model": ({"model": " ", "messages": [USER]}, "model", "empty"),
    "model is a number": ({"model": 1, "messages": [USER]}, "model", "a string"),
    "no messages": ({"model": "m"}, "messages", "Missing"),
    "messages null": ({"model": "m", "messages": None}, "messages", "Missing"),
    "messages empty": ({"model": "m", "messages": []}, "messages", "empty array"),
    "messages a string": ({"model": "m", "messages": "hi"}, "messages", "an array"),
    "message a string": ({"model": "m", "messages": ["hi"]}, "messages[0]", "an object"),
    "no role": ({"model": "m", "messages": [{"content": "x"}]}, "messages[0].role", "Missing"),
    "odd role": ({"model": "m", "messages": [USER, {"role": "god", "content": "x"}]}, "messages[1].role",
        "god"),
    "content a number": ({"model": "m", "messages": [{"role": "user", "content": 1}]}, "messages[0].content",
        "array of content parts"),
    "user without content": ({"model": "m", "messages": [{"role": "user"}]}, "messages[0].content",
        "Missing"),
    "part without type": ({"model": "m", "messages": [{"role": "user", "content": [{"text": "x"}]}]},
        "messages[0].content[0].type", "Missing"),
    "odd part": ({"model": "m", "messages": [{"role": "user", "content": [{"type": "smell"}]}]},
        "messages[0].content[0].type", "smell"),
    "text part without text": ({"model": "m", "messages": [{"role": "user", "content": [{"type": "text"}]}]},
        "messages[0].content[0].text", "Missing"),
    "image without url": ({"model": "m", "messages": [{"role": "user", "content": [{"type": "image_url",
        "image_url": {}}]}]}, "messages[0].content[0].image_url.url", "a string"),
    "tool message without id": ({"model": "m", "messages": [{"role": "tool", "content": "x"}]},
        "messages[0].tool_call_id", "Missing"),
    "function message without name": ({"model": "m", "messages": [{"role": "function", "content": "x"}]},
        "messages[0].name", "Missing"),
    "call without function": ({"model": "m", "messages": [{"role": "assistant", "tool_calls": [{"id": "a",
        "type": "function"}]}]}, "messages[0].tool_calls[0].function", "an object"),
    "call beside a text": ({"model": "m", "messages": [{"role": "assistant", "content": "x",
        "tool_calls": ""}]}, "messages[0].tool_calls", "an array"),
    "old call beside a text": ({"model": "m", "messages": [{"role": "assistant", "content": "x",
        "function_call": []}]}, "messages[0].function_call", "an object"),
    "call without name": ({"model": "m", "messages": [{"role": "assistant",
        "tool_calls": [{"function": {}}]}]}, "messages[0].tool_calls[0].function.name", "a string"),
    "legacy call without name": ({"model": "m", "messages": [{"role": "assistant", "function_call": {}}]},
        "messages[0].function_call.name", "a string"),
    "temperature a string": ({"temperature": "hot"}, "temperature", "a number"),
    "temperature true": ({"temperature": True}, "temperature", "a boolean"),
    "temperature too high": ({"temperature": 2.5}, "temperature", "between 0 and 2"),
    "max_tokens 0": ({"max_tokens": 0}, "max_tokens", "from 1"),
    "max_tokens a fraction": ({"max_tokens": 1.5}, "max_tokens", "an integer"),
    "stream a string": ({"stream": "true"}, "stream", "a boolean"),
    "stop a number": ({"stop": 1}, "stop", "array of strings"),
    "stop of numbers": ({"stop": [1]}, "stop[0]", "a string"),
    "odd effort": ({"reasoning_effort": "heroic"}, "reasoning_effort", "heroic"),
    "odd format": ({"response_format": {"type": "xml"}}, "response_format.type", "xml"),
    "schema without schema": ({"response_format": {"type": "json_schema"}}, "response_format.json_schema",
        "an object"),
    "tools a string": ({"tools": "x"}, "tools", ""),
}  # fmt: skip


@pytest.mark.parametrize(("body", "param", "message"), WRONG.values(), ids=WRONG.keys())
def test_an_invalid_request_names_its_field(body, param, message):
    """An invalid field is a 400 whose param and message name the path."""
    if isinstance(body, dict) and "messages" not in body and "model" not in body:
        body = {"model": "m", "messages": [USER], **body}
    with pytest.raises(RequestError) as caught:
        chat.decode(body, id="i", created=0, default_model=None, max_messages=10_000)
    assert caught.value.status == 400
    assert caught.value.param == param
    assert message in caught.value.message


def test_zero_values_and_unknown_fields_are_kept():
    """0, false and Qwen's own fields are unchanged; null means unset."""
    params = decode(
        temperature=0, top_p=0.0, enable_thinking=False, thinking_budget=0, seed=None, xyz={"a": []}
    ).params
    assert params == {
        "temperature": 0,
        "top_p": 0.0,
        "enable_thinking": False,
        "thinking_budget": 0,
        "xyz": {"a": []},
    }


def test_integral_floats_are_integers():
    """5.0 is a valid max_tokens."""
    assert decode(max_tokens=5.0).params == {"max_tokens": 5}


def test_the_default_model():
    """A request without a model gets the operator's default."""
    assert (
        chat.decode(
            {"messages": [USER]}, id="i", created=0, default_model="qwen-max", max_messages=10_000
        ).model
        == "qwen-max"
    )


def test_usage_is_only_requested_in_streams():
    """include_usage has an effect only together with stream."""
    assert decode(stream=True, stream_options={"include_usage": True}).include_usage
    assert not decode(stream_options={"include_usage": True}).include_usage


def test_common_mistakes_in_parts_are_accepted():
    """Strings in part lists, bare image URLs and Responses part names have one meaning each."""
    content = ["a", {"type": "input_text", "text": "b"}, {"type": "image_url", "image_url": "http://x/y.png"}]
    message = decode(messages=[{"role": "user", "content": content}]).messages[0]
    assert message["content"] == [
        {"type": "text", "text": "a"},
        {"type": "text", "text": "b"},
        {"type": "image_url", "image_url": {"url": "http://x/y.png"}},
    ]
    assert content[0] == "a"


def test_unchanged_messages_are_not_copied():
    """A prompt is validated without a copy."""
    message = {"role": "user", "content": [{"type": "text", "text": "x"}]}
    assert decode(messages=[message]).messages[0] is message


def test_too_many_messages_are_rejected():
    """The operator sets the limit on messages."""
    with pytest.raises(RequestError, match="limit is 1"):
        chat.decode(
            {"model": "m", "messages": [USER, USER]}, id="i", created=0, max_messages=1, default_model=None
        )


def test_text_stream():
    """The role is sent once, then text, then one finish with an empty delta."""
    text = encode(
        turn(stream=True), TextDelta("Hel"), TextDelta('lo "\n'), ChoiceFinished("stop"), StreamDone()
    )
    assert deltas(text) == [
        {"role": "assistant", "content": ""},
        {"content": "Hel"},
        {"content": 'lo "\n'},
        {},
    ]
    parsed = chunks(text)
    assert [chunk["choices"][0]["finish_reason"] for chunk in parsed] == [None, None, None, "stop"]
    assert {(chunk["id"], chunk["created"], chunk["model"], chunk["object"]) for chunk in parsed} == {
        ("chatcmpl-1", 1700000000, "qwen-plus", "chat.completion.chunk")
    }
    assert "usage" not in text


def test_call_stream():
    """A call's id, type and name are sent once; content is null if a call is first."""
    text = encode(
        turn(stream=True),
        ToolCallStart(0, "call_1", "f"),
        ToolCallArgumentsDelta(0, '{"a"'),
        ToolCallArgumentsDelta(0, ":1}"),
        ChoiceFinished("tool_calls"),
    )
    assert deltas(text) == [
        {"role": "assistant", "content": None},
        {
            "tool_calls": [
                {"index": 0, "id": "call_1", "type": "function", "function": {"name": "f", "arguments": ""}}
            ]
        },
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"a"'}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": ":1}"}}]},
        {},
    ]


def test_reasoning_stream():
    """Reasoning is sent as reasoning_content."""
    text = encode(turn(stream=True), ReasoningDelta("hm"), TextDelta("x"), ChoiceFinished("stop"))
    assert deltas(text) == [
        {"role": "assistant", "content": None},
        {"reasoning_content": "hm"},
        {"content": "x"},
        {},
    ]


def test_the_usage_chunk_is_last_and_on_request():
    """With include_usage every chunk has a usage, null except in the last, which has no choices."""
    parsed = chunks(
        encode(turn(stream=True, include_usage=True), TextDelta("x"), Usage(3, 4, 7), ChoiceFinished("stop"))
    )
    assert [chunk["usage"] for chunk in parsed[:-1]] == [None, None, None]
    assert parsed[-1]["choices"] == []
    assert (parsed[-1]["usage"]["prompt_tokens"], parsed[-1]["usage"]["total_tokens"]) == (3, 7)


def test_an_empty_response_has_a_role():
    """A finish alone makes a role chunk and a finish chunk."""
    assert deltas(encode(turn(stream=True), ChoiceFinished("stop"))) == [
        {"role": "assistant", "content": ""},
        {},
    ]


def test_choices_are_separate():
    """Each choice has its own role and finish."""
    parsed = chunks(
        encode(
            turn(stream=True),
            TextDelta("a", 0),
            TextDelta("b", 1),
            ChoiceFinished("stop", 1),
            ChoiceFinished("length", 0),
        )
    )
    assert [(c["choices"][0]["index"], c["choices"][0]["finish_reason"]) for c in parsed] == [
        (0, None), (0, None), (1, None), (1, None), (1, "stop"), (0, "length"),
    ]  # fmt: skip


def test_choices_start_in_order():
    """Choices start in order even if a later one has the first delta, as openai-python's stream helper
    requires."""
    request = turn(stream=True, params={"n": 3})
    text = encode(
        request,
        TextDelta("c", 2),
        TextDelta("a", 0),
        TextDelta("b", 1),
        *(ChoiceFinished("stop", n) for n in range(3)),
    )
    state = ChatCompletionStreamState()
    for chunk in chunks(text):
        state.handle_chunk(ChatCompletionChunk.model_validate(chunk))
    assert [choice.message.content for choice in state.get_final_completion().choices] == ["a", "b", "c"]
    assert text.count('"role"') == 3
    assert encode(turn(stream=True), TextDelta("a", 10**9)).count('"role"') == 1


def test_a_failure_is_one_final_frame():
    """After the first byte an error is one frame with all four keys, without [DONE]."""
    text = encode(turn(stream=True, include_usage=True), TextDelta("a"), StreamFailed(UpstreamError("cut")))
    last = text.split("\n\n")[-2]
    assert json.loads(last.removeprefix("data: ")) == {
        "error": {"message": "cut", "type": "server_error", "param": None, "code": "upstream_error"}
    }
    assert "[DONE]" not in text


def test_a_lone_surrogate_does_not_break_the_stream():
    """Text without a UTF-8 form is written with an escape."""
    assert deltas(encode(turn(stream=True), TextDelta("\ud83c"), ChoiceFinished("stop")))[1] == {
        "content": "\ud83c"
    }


def test_legacy_functions():
    """A request with `functions` gets a response with `function_call`."""
    request = turn(stream=True, legacy_functions=True)
    events: list[Event] = [
        ToolCallStart(0, "call_1", "f"),
        ToolCallArgumentsDelta(0, "{}"),
        ChoiceFinished("tool_calls"),
    ]
    text = encode(request, *events)
    assert deltas(text)[1:3] == [
        {"function_call": {"name": "f", "arguments": ""}},
        {"function_call": {"arguments": "{}"}},
    ]
    assert chunks(text)[-1]["choices"][0]["finish_reason"] == "function_call"
    choice = chat.response(request, events)["choices"][0]
    assert choice["message"]["function_call"] == {"name": "f", "arguments": "{}"}
    assert choice["finish_reason"] == "function_call"


def test_whole_response():
    """The whole response is the fold of the same events."""
    body = chat.response(
        turn(),
        [ReasoningDelta("h"), TextDelta("a",
            logprobs={"content": [{"token": "a", "logprob": -1.0, "bytes": None, "top_logprobs": []}]}),
         TextDelta("b"), Usage(1, 2, 3, {"cached_tokens": 1}, {"reasoning_tokens": 2}),
         ChoiceFinished("stop"), StreamDone()],
    )  # fmt: skip
    parsed = ChatCompletion.model_validate(body, strict=True)
    assert parsed.choices[0].message.content == "ab"
    assert body["choices"][0]["message"]["reasoning_content"] == "h"
    assert parsed.usage is not None
    assert parsed.usage.completion_tokens_details is not None
    assert parsed.usage.completion_tokens_details.reasoning_tokens == 2
    assert parsed.choices[0].logprobs is not None


WRITES = {
    "in all": ({"cache_creation_input_tokens": 30}, 30, (30, 0)),
    "by time to live": ({"cache_creation_input_tokens": 30,
        "cache_creation": {"ephemeral_1h_input_tokens": 10}}, 30, (20, 10)),
    "by OpenAI's name": ({"cache_write_tokens": 30}, 30, (30, 0)),
    "for an hour alone": ({"cache_creation": {"ephemeral_1h_input_tokens": 10}}, 10, (0, 10)),
    "none": ({}, None, (0, 0)),
    "of odd shapes": ({"cache_creation_input_tokens": "x", "cache_creation": [1]}, None, (0, 0)),
}  # fmt: skip


@pytest.mark.parametrize(("details", "expected_count", "writes"), WRITES.values(), ids=WRITES.keys())
def test_tokens_written_to_a_cache(details, expected_count, writes):
    """Cache writes are under OpenAI's name, beside the server's own details."""
    usage = Usage(100, 2, 102, {"cached_tokens": 5, **details})
    assert usage.cache_writes == writes
    body = chat.response(turn(), [TextDelta("a"), usage, ChoiceFinished("stop"), StreamDone()])
    found = body["usage"]["prompt_tokens_details"]
    assert found.get("cache_write_tokens") == expected_count
    assert details.items() <= found.items()


def test_whole_response_with_calls():
    """Content is null if there are calls and no text."""
    body = chat.response(
        turn(),
        [
            ToolCallStart(0, "c", "f"),
            ToolCallArgumentsDelta(0, "{"),
            ToolCallArgumentsDelta(0, "}"),
            ChoiceFinished("tool_calls"),
        ],
    )
    message = ChatCompletion.model_validate(body, strict=True).choices[0].message
    assert message.content is None
    assert message.tool_calls is not None
    assert message.tool_calls[0].to_dict() == {
        "id": "c",
        "type": "function",
        "function": {"name": "f", "arguments": "{}"},
    }


def test_whole_custom_call_and_refusal():
    """A custom call keeps its free-form input, and a refusal its text."""
    events: list[Event] = [
        RefusalDelta("no"),
        ToolCallStart(0, "c", "sql", custom=True),
        ToolCallArgumentsDelta(0, "select 1"),
        ChoiceFinished("tool_calls"),
    ]
    message = chat.response(turn(), events)["choices"][0]["message"]
    assert message["refusal"] == "no"
    assert message["tool_calls"] == [
        {"id": "c", "type": "custom", "custom": {"name": "sql", "input": "select 1"}}
    ]
    assert '"custom":{"input":"select 1"}' in encode(turn(), *events)


def test_a_failed_whole_response_raises():
    """A whole response that failed is an error, whatever events preceded it."""
    with pytest.raises(UpstreamError, match="cut"):
        chat.response(turn(), [TextDelta("a"), StreamFailed(UpstreamError("cut"))])


RAN = (ServerToolCall("call_1", "sum", '{"a":1}'), ServerToolResult("call_1", "sum", "2", True, 0.0123))
ANSWER = (TextDelta("two"), ChoiceFinished("stop"))


def test_executed_tools_are_comments():
    """A chat client receives no call of this server's tools, only a comment."""
    text = encode(turn(), *RAN, *ANSWER)
    assert text.startswith(": tool sum ok 12 ms\n\ndata: ")
    assert "call_1" not in text
    assert "tool" not in str(chat.response(turn(), [*RAN, *ANSWER]))


@pytest.mark.parametrize("usage", [False, True])
def test_executed_tools_are_reported_on_request(usage):
    """The last chunk, and a whole response, have a `qproxy` object if the client requested it."""
    expected_count = [
        {"id": "call_1", "name": "sum", "arguments": '{"a":1}', "output": "2", "ok": True, "ms": 12}
    ]
    request = turn(include_tool_reports=True, include_usage=usage)
    text = encode(request, *RAN, *ANSWER).partition("\n\n")[2]
    *others, last = chunks(text)
    assert last["qproxy"] == {"tools": expected_count}
    assert not any("qproxy" in chunk for chunk in others)
    assert chat.response(request, [*RAN, *ANSWER])["qproxy"] == {"tools": expected_count}


def test_unknown_includes_are_rejected():
    """`qproxy.include` contains known names only."""
    assert decode(qproxy={"include": ["tools"]}).include_tool_reports
    assert not decode(qproxy={}).include_tool_reports
    with pytest.raises(RequestError) as caught:
        decode(qproxy={"include": ["secrets"]})
    assert caught.value.param == "qproxy.include[0]"


FOUND: dict[str, Any] = {"search_results": [{"index": 1, "title": "T", "url": "http://a"}, {"url": 5}, None]}
CITATION = {"start_index": 0, "end_index": 1, "title": "T", "url": "http://a"}


def test_sources_become_annotations():
    """A client that used OpenAI's options gets the sources as annotations, of the whole text if it cites none
    of them, streamed once and whole."""
    more = {"search_results": [*FOUND["search_results"], {"url": "http://b"}]}
    events: list[Event] = [
        SearchInfo(FOUND),
        TextDelta("x"),
        SearchInfo(more),
        ChoiceFinished("stop"),
        SearchInfo(more),
    ]
    request = turn(params={"web_search_options": {}})
    second = {"type": "url_citation", "url_citation": {**CITATION, "title": "", "url": "http://b"}}
    expected = [{"type": "url_citation", "url_citation": CITATION}, second]
    assert chat.response(request, events)["choices"][0]["message"]["annotations"] == expected
    sent = [found for delta in deltas(encode(request, *events)) for found in delta.get("annotations", ())]
    assert sent == expected
    assert "annotations" not in encode(turn(), *events)
    assert "annotations" not in chat.response(turn(), events)["choices"][0]["message"]


def test_annotations_have_positions():
    """An annotation has the place of the mark in the whole text, whichever deltas it came in, and comes
    before the finish reason."""
    events: list[Event] = [
        SearchInfo(FOUND),
        *map(TextDelta, ("Yes", " [re", "f_1]. ")),
        ChoiceFinished("stop"),
    ]
    request = turn(params={"web_search_options": {}})
    cited = {"type": "url_citation", "url_citation": {**CITATION, "start_index": 4, "end_index": 11}}
    assert chat.response(request, events)["choices"][0]["message"]["annotations"] == [cited]
    *_, last, finish = chunks(encode(request, *events, StreamDone()))
    assert last["choices"][0]["delta"] == {"annotations": [cited]}
    assert finish["choices"][0]["finish_reason"] == "stop"


PARTS_OF_TOMORROW = [{"type": "hologram", "hologram": {"url": "x"}}, {"type": "text", "text": "hi"}]


def test_unknown_parts_are_forwarded():
    """A content part of an unknown type is sent to the upstream unchanged."""
    body = {"messages": [{"role": "user", "content": PARTS_OF_TOMORROW}]}
    assert decode(**body).messages[0]["content"] == PARTS_OF_TOMORROW
