"""Gemini's form of function calling: requests in both dialects, and every spelling of responses."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qproxy.wire import sse, tool_calls
from qproxy.wire.dialects import DIALECTS, UpstreamTarget
from qproxy.wire.events import StreamFailed, Turn, Usage
from qproxy.wire.pipeline import Pipeline
from tests.examples import examples
from tests.wire.tool_call_contract import check, fold

TARGET = UpstreamTarget("https://h/v1", "m", "sk-1", "open", "open", tool_schema="function_declarations")
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {"name": "weather", "description": "The weather", "parameters": PARAMETERS}
TOOLS = [{"type": "function", "function": WEATHER}, {"type": "function", "function": {"name": "now"}}]
STRICT = [{"type": "function", "function": {**WEATHER, "strict": True}}]
HELLO = [{"role": "user", "content": "hi"}]


def turn(**more):
    return Turn(**{"id": "i", "created": 0, "model": "m", "messages": HELLO, "tools": TOOLS, **more})


def decoded_request(dialect, **more):
    """Return (messages, the function fields) of a request."""
    body = json.loads(DIALECTS[dialect].request(turn(**more), TARGET).body)
    fields = body if dialect == "compatible" else body["parameters"]
    messages = body["messages"] if dialect == "compatible" else body["input"]["messages"]
    return messages, {key: value for key, value in fields.items() if key.startswith("tool")}


CHOICES = {
    "not said": (TOOLS, None, None),
    "auto": (TOOLS, "auto", {"mode": "AUTO"}),
    "none": (TOOLS, "none", {"mode": "NONE"}),
    "required": (TOOLS, "required", {"mode": "ANY"}),
    "one function": (
        TOOLS,
        {"type": "function", "function": {"name": "now"}},
        {"mode": "ANY", "allowed_function_names": ["now"]},
    ),
    "strict": (STRICT, None, {"mode": "VALIDATED"}),
    "strict, auto": (STRICT, "auto", {"mode": "VALIDATED"}),
    "strict, required": (STRICT, "required", {"mode": "ANY"}),
    "strict, none": (STRICT, "none", {"mode": "NONE"}),
}


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize(("tools", "choice", "config"), CHOICES.values(), ids=CHOICES.keys())
def test_tools_and_tool_choice(dialect, tools, choice, config):
    """Tools are one list of declarations; the choice is a mode; no field of OpenAI's form remains."""
    _, fields = decoded_request(dialect, tools=tools, tool_choice=choice)
    declared = [WEATHER] if tools is STRICT else [WEATHER, {"name": "now"}]
    expected = {"tools": [{"function_declarations": declared}]}
    assert fields == expected | ({"tool_config": {"function_calling_config": config}} if config else {})


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_request_without_tools(dialect):
    """It has no function field, and its messages are unchanged."""
    assert decoded_request(dialect, tools=()) == (HELLO, {})


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_nullable_type(dialect):
    """A null type becomes OpenAPI's `nullable`, at any depth; a value that is no type is unchanged."""
    inner = {"type": ["string", "null"], "enum": ["a", None], "default": None}
    schema = {"type": "object", "properties": {"enum": {"type": "array", "items": inner}, "type": inner}}
    tools = [{"type": "function", "function": {"name": "f", "parameters": schema}}]
    _, fields = decoded_request(dialect, tools=tools)
    changed = {"type": "string", "nullable": True, "enum": ["a", None], "default": None}
    expected = {
        "type": "object",
        "properties": {"enum": {"type": "array", "items": changed}, "type": changed},
    }
    assert fields["tools"][0]["function_declarations"][0]["parameters"] == expected


def called(*calls, **more):
    return {
        "role": "assistant",
        "tool_calls": [
            {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}
            for id, name, arguments in calls
        ],
        **more,
    }


def result(id, content, **more):
    return {"role": "tool", "tool_call_id": id, "content": content, **more}


def call_part(id, name, args):
    return {"functionCall": {"id": id, "name": name, "args": args}}


def result_part(id, name, response):
    return {"functionResponse": {"id": id, "name": name, "response": response}}


HISTORIES = {
    "a call and its result": (
        [called(("c1", "weather", '{"city": "Rome", "id": 9007199254740993}'), content=None),
            result("c1", "sunny")],
        [
            {"role": "assistant",
                "content": [call_part("c1", "weather", {"city": "Rome", "id": 9007199254740993})]},
            {"role": "tool", "tool_call_id": "c1",
                "content": [result_part("c1", "weather", {"output": "sunny"})]},
        ],
    ),
    "two calls after a text": (
        [called(("a", "now", "{}"), ("b", "now", ""), content="Let me see."), result("b", '{"hour": 7}'),
            result("a", "7")],
        [
            {"role": "assistant",
                "content": [{"text": "Let me see."}, call_part("a", "now", {}), call_part("b", "now", {})]},
            {"role": "tool", "tool_call_id": "b", "content": [result_part("b", "now", {"hour": 7})]},
            {"role": "tool", "tool_call_id": "a", "content": [result_part("a", "now", {"output": "7"})]},
        ],
    ),
    "arguments that are no object": (
        [called(("a", "now", "[1]"), ("b", "now", '{"cut'))],
        [{"role": "assistant", "content": [call_part("a", "now", {"arguments": "[1]"}),
            call_part("b", "now", {"arguments": '{"cut'})]}],
    ),
    "a result that nobody asked for": (
        [result("x", "7", name="now")],
        [{"role": "tool", "tool_call_id": "x", "name": "now",
            "content": [result_part("x", "now", {"output": "7"})]}],
    ),
    "deprecated functions": (
        [{"role": "assistant", "content": "", "function_call": {"name": "now", "arguments": "{}"}},
            {"role": "function", "name": "now", "content": "7"}],
        [
            {"role": "assistant", "content": [call_part("call_1", "now", {})]},
            {"role": "tool", "tool_call_id": "call_1",
                "content": [result_part("call_1", "now", {"output": "7"})]},
        ],
    ),
}  # fmt: skip


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize(("messages", "expected"), HISTORIES.values(), ids=HISTORIES.keys())
def test_history(dialect, messages, expected):
    """Earlier calls and their results are parts, each result with its call's name."""
    assert decoded_request(dialect, messages=[*HELLO, *messages])[0] == [*HELLO, *expected]


def test_results_with_images():
    """The images of a result follow its text."""
    picture = {"type": "image_url", "image_url": {"url": "https://x/y.png"}}
    content = [{"type": "text", "text": "here"}, picture]
    messages = [called(("a", "now", "{}"), content="x"), result("a", content)]
    (_, message), _ = decoded_request("compatible", messages=messages)
    assert message["content"] == [result_part("a", "now", {"output": "here"}), picture]


ROME, PARIS = {"name": "weather", "args": {"city": "Rome"}}, {"name": "weather", "args": {"city": "Paris"}}
ROMAN, PARISIAN = ["weather", '{"city":"Rome"}'], ["weather", '{"city":"Paris"}']
STREAMS: dict[str, tuple[list, str, list]] = {
    "a call in a delta": ([{"functionCall": ROME}], "", [ROMAN]),
    "a call in another case": ([{"function_call": ROME}], "", [ROMAN]),
    "a call in parts": ([{"parts": [{"text": "I look."}, {"functionCall": ROME}]}], "I look.", [ROMAN]),
    "a call in parts of the content": ([{"content": [{"functionCall": ROME}]}], "", [ROMAN]),
    "a call in Gemini's content": ([{"content": {"role": "model", "parts": [{"functionCall": ROME}]}}], "",
        [ROMAN]),
    "a call among tool_calls": ([{"tool_calls": [{"functionCall": ROME}]}], "", [ROMAN]),
    "arguments under args": ([{"tool_calls": [{"type": "function", "function": ROME}]}], "", [ROMAN]),
    "text beside a call": ([{"content": "Hm. ", "functionCall": ROME}], "Hm. ", [ROMAN]),
    "text, then a call": ([{"content": "Let "}, {"parts": [{"text": "me."}]}, {"functionCall": ROME}],
        "Let me.", [ROMAN]),
    "two calls at once": ([{"parts": [{"functionCall": ROME}, {"functionCall": PARIS}]}], "",
        [ROMAN, PARISIAN]),
    "one call after the other": ([{"functionCall": ROME}, {"functionCall": PARIS}], "", [ROMAN, PARISIAN]),
    "two calls that are alike": ([{"parts": [{"functionCall": ROME}, {"functionCall": ROME}]}], "",
        [ROMAN, ROMAN]),
    "everything so far, each time": (
        [{"parts": [{"functionCall": ROME}]}, {"parts": [{"functionCall": ROME}, {"functionCall": PARIS}]},
            {"parts": [{"functionCall": ROME}, {"functionCall": PARIS}]}],
        "",
        [ROMAN, PARISIAN],
    ),
    "the first again, after another": ([{"functionCall": ROME}, {"functionCall": PARIS},
        {"functionCall": ROME}], "", [ROMAN, PARISIAN, ROMAN]),
    "no arguments": ([{"parts": [{"functionCall": {"name": "now"}},
        {"functionCall": {"name": "now", "args": {}}}]}], "", [["now", "{}"], ["now", "{}"]]),
    "arguments in pieces": ([{"functionCall": {"name": "weather", "args": '{"city"'}},
        {"functionCall": {"args": ':"Rome"}'}}], "", [ROMAN]),
    "a name, then its arguments": ([{"functionCall": {"name": "weather"}},
        {"functionCall": {"args": '{"city":"Rome"}'}}], "", [ROMAN]),
    "OpenAI's own form": ([{"tool_calls": [{"index": 0, "id": "x",
        "function": {"name": "weather", "arguments": '{"city":'}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '"Rome"}'}}]}], "", [ROMAN]),
    "no call": ([{"content": "a"}, {"parts": [{"text": "b"}]}, {"content": None}, {}], "ab", []),
    "nonsense": ([{"functionCall": 1, "parts": [1, {"text": 2}], "tool_calls": [3, {}]},
        {"content": "a", "parts": "b"}], "a", []),
}  # fmt: skip


def chunks(dialect, messages, reason="STOP"):
    """Return the bytes of a stream with a finish reason of Gemini's at its end."""
    data = []
    for number, message in enumerate(messages):
        last = number == len(messages) - 1
        choice = {"index": 0, "delta": message, "finish_reason": reason if last else None}
        native = {"message": message, "finish_reason": reason if last else "null"}
        data.append({"choices": [choice]} if dialect == "compatible" else {"output": {"choices": [native]}})
    text = "".join(f"data: {json.dumps(one)}\n\n" for one in data)
    return (text + ("data: [DONE]\n\n" if dialect == "compatible" else "")).encode()


def play(dialect, raw, cuts=()):
    """Return the events of a stream, read in these chunks."""
    chain = Pipeline(sse.Decoder(), DIALECTS[dialect].decoder(TARGET), tool_calls.build_pipeline(turn()))
    ends = [*cuts, len(raw)]
    pieces = [raw[start:end] for start, end in zip([0, *cuts], ends, strict=True)]
    out = [one for piece in pieces for one in chain.feed(piece)] + chain.close()
    check(out)
    return out


def summary(events):
    choice = fold(events)[0]
    return choice["text"], [call[1:] for call in choice["calls"]], choice["reason"]


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize(("messages", "text", "calls"), STREAMS.values(), ids=STREAMS.keys())
def test_streams(dialect, messages, text, calls):
    """Calls in any position are OpenAI's calls, read whole and byte by byte."""
    raw = chunks(dialect, messages)
    expected = (text, calls, "tool_calls" if calls else "stop")
    assert summary(play(dialect, raw)) == expected
    assert summary(play(dialect, raw, range(1, len(raw)))) == expected


@given(st.data(), st.sampled_from(sorted(STREAMS)), st.sampled_from(sorted(DIALECTS)))
@examples(100)
def test_any_cut(data, name, dialect):
    """A stream gives the same events at any cut."""
    messages, text, calls = STREAMS[name]
    raw = chunks(dialect, messages)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(raw)), max_size=6)))
    assert summary(play(dialect, raw, cuts))[:2] == (text, calls)


WHOLE = {name: case for name, case in STREAMS.items() if len(case[0]) == 1}


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize(("messages", "text", "calls"), WHOLE.values(), ids=WHOLE.keys())
def test_whole(dialect, messages, text, calls):
    """A whole response gives the same events as a streamed one."""
    choice = {"message": messages[0], "finish_reason": "STOP"}
    body = {"choices": [choice]} if dialect == "compatible" else {"output": {"choices": [choice]}}
    stage = tool_calls.build_pipeline(turn())
    out = [one for item in DIALECTS[dialect].response(body, TARGET) for one in stage.feed(item)]
    check(out)
    assert summary(out) == (text, calls, "tool_calls" if calls else "stop")


def test_ids_are_kept():
    """The client receives a call's own id."""
    raw = chunks(
        "compatible", [{"parts": [{"functionCall": {**ROME, "id": "fc-1"}}, {"functionCall": PARIS}]}]
    )
    (first, second) = fold(play("compatible", raw))[0]["calls"]
    assert first[0] == "fc-1"
    assert second[0].startswith("call_")


CANDIDATES = {
    "candidates": [
        {
            "content": {"role": "model",
                "parts": [{"text": "hm", "thought": True}, {"text": "I look."}, {"functionCall": ROME}]},
            "finishReason": "STOP",
            "index": 0,
        }
    ],
    "usageMetadata": {"promptTokenCount": 5, "candidatesTokenCount": 2, "thoughtsTokenCount": 3,
        "totalTokenCount": 10, "cachedContentTokenCount": 4},
}  # fmt: skip


@pytest.mark.parametrize("stream", [True, False])
def test_geminis_own_envelope(stream):
    """Gemini's own envelope is read, too, with its reasoning and usage."""
    if stream:
        out = play("compatible", f"data: {json.dumps(CANDIDATES)}\n\n".encode())
    else:
        stage = tool_calls.build_pipeline(turn())
        out = [
            one for item in DIALECTS["compatible"].response(CANDIDATES, TARGET) for one in stage.feed(item)
        ]
    assert summary(out) == ("I look.", [ROMAN], "tool_calls")
    assert fold(out)[0]["thought"] == "hm"
    assert next(one for one in out if isinstance(one, Usage)) == Usage(
        5, 5, 10, {"cached_tokens": 4}, {"reasoning_tokens": 3}
    )


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize(
    ("reason", "expected"), [("MAX_TOKENS", "length"), ("SAFETY", "content_filter"), ("stop", "stop")]
)
def test_finish_reasons(dialect, reason, expected):
    """Gemini's reasons become OpenAI's."""
    assert summary(play(dialect, chunks(dialect, [{"content": "a"}], reason)))[2] == expected


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_malformed_call_is_an_error(dialect):
    """A call that the server could not parse is an error and no response."""
    assert isinstance(
        play(dialect, chunks(dialect, [{"content": ""}], "MALFORMED_FUNCTION_CALL"))[-1], StreamFailed
    )


@pytest.mark.parametrize("dialect", DIALECTS)
def test_errors(dialect):
    """A server's error is an error in this form, too."""
    body = {"error": {"code": "invalid_parameter", "message": "no"}}
    if dialect == "dashscope":
        body = {"code": "InvalidParameter", "message": "no"}  # type: ignore[dict-item]
    assert isinstance(DIALECTS[dialect].response(body, TARGET)[0], StreamFailed)
    assert isinstance(play(dialect, f"data: {json.dumps(body)}\n\n".encode())[-1], StreamFailed)
