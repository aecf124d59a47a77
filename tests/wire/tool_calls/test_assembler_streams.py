"""Structured calls with the faults of servers, from the upstream's bytes to the client's.

Every case is played whole, byte by byte and at seeded cuts, streamed and as a whole response, and the
client's result is read by `tests.wire.strict_reader`.
"""

import pytest

from qproxy.wire import tool_calls
from qproxy.wire.dialects import DIALECTS
from qproxy.wire.endpoints import chat
from qproxy.wire.events import RawToolCallDelta
from tests.wire.pipeline import DONE, TARGET, call, calls, chunk, decoded, entry, meaning, same, texts
from tests.wire.strict_reader import read_whole

NAME = "get_weather"
A, B = '{"city": "Paris"}', '{"city": "Rome"}'
PARIS, ROME, NOW = (NAME, A), (NAME, B), ("now", "{}")


def repeated(fragment):
    """Return a fragment in DashScope's shape: every key once more, empty."""
    return {"index": 0, "id": "", "type": "function", "function": {"name": None, "arguments": fragment}}


def prefixes(text, *sizes):
    return [text[:size] for size in sizes or range(1, len(text) + 1)]


HEAD = {"index": 0, "id": "call_1", "type": "function", "function": {"name": NAME, "arguments": ""}}
CASES = {
    "1 keys repeated empty": ([calls(HEAD, content=""),
        calls(repeated('{"city": '), content="", role="assistant"), calls(repeated('"Paris"}'), content=None),
        calls(repeated(""), content="")], [PARIS]),
    "2 empty lists and roles": ([chunk({"role": "assistant", "content": "", "tool_calls": []}),
        chunk({"role": "assistant", "content": "", "tool_calls": None}), call(0, "x", NAME, A)], [PARIS]),
    "3 index reused": ([call(0, "x", NAME, A), call(0, "y", NAME, ""), call(0, "", "-", B)], [PARIS, ROME]),
    "4 fragments of the latest": ([call(0, "x", NAME, A), call(0, "y", NAME, '{"ci'),
        call(0, "", None, 'ty": '), call(0, "-", "-", '"Rome"}')], [PARIS, ROME]),
    "5 no index": ([call(None, "x", NAME, '{"ci'), call(None, None, None, 'ty": "Paris"}'),
        call(None, None, NAME, B)], [PARIS, ROME]),
    "5 no index, one delta": ([calls(entry(None, None, NAME, A), entry(None, None, NAME, B))], [PARIS, ROME]),
    "6 indices with gaps": ([call(1, "x", NAME, ""), call(1, "", "-", A), call(5, "y", NAME, ""),
        call(5, None, None, B)], [PARIS, ROME]),
    "7 no ids": ([call(0, None, NAME, ""), call(0, None, None, A), call(1, "", NAME, ""),
        call(1, "-", None, B)], [PARIS, ROME]),
    "8 one id twice": ([call(0, "x", NAME, A), call(1, "x", NAME, B)], [PARIS, ROME]),
    "8 one id twice, in every fragment": ([call(0, "x", NAME, ""), call(0, "x", None, A),
        call(1, "x", NAME, ""), call(1, "x", None, B)], [PARIS, ROME]),
    "8 one id twice, interleaved": ([call(0, "x", NAME, ""), call(1, "x", "now", ""), call(0, "", None, A),
        call(1, "", None, "{}")], [PARIS, NOW]),
    "9 late id": ([call(0, None, NAME, '{"ci'), call(0, "late", None, 'ty": "Paris"}'),
        call(0, "late", None, "")], [PARIS]),
    "9 late id with the name": ([call(0, None, NAME, '{"ci'), call(0, "late", NAME, 'ty": "Paris"}')],
        [PARIS]),
    "10 id, name, arguments": ([call(0, "x"), call(0, None, NAME), call(0, None, None, A)], [PARIS]),
    "10 parallel": ([call(0, "x"), call(1, "y"), call(0, None, NAME), call(1, None, "now"),
        call(1, None, None, "{}"), call(0, None, None, A)], [PARIS, NOW]),
    "11 name every time": ([call(0, "x", NAME, '{"ci'), call(0, "x", NAME, 'ty": '),
        call(0, "", NAME, '"Paris"}')], [PARIS]),
    "11 name once more at the end": ([call(0, "x", NAME, A), call(0, "", NAME, "")], [PARIS]),
    "11 another call of that name": ([call(0, "x", NAME, A), call(0, "", NAME, ""), call(0, "", None, B)],
        [PARIS, ROME]),
    "13 replays": ([call(0, "x", NAME, A), call(0, "", "-", A), call(0, "x", NAME, A),
        call(0, "", "-", "\n")], [PARIS]),
    "14 snapshots": ([call(0, "x", NAME, piece) for piece in prefixes(A)], [PARIS]),
    "14 snapshots, no names": ([call(0, "x", NAME, ""),
        *(call(0, "", "-", piece) for piece in prefixes(A, 1, 4, 9, 9, 13, 17, 17))], [PARIS]),
    "14 snapshots that begin ambiguous": ([call(0, "x", NAME, piece) for piece in prefixes(A, 8, 17, 17)],
        [PARIS]),
    "14 two ambiguous snapshots": ([call(0, "x", NAME, piece) for piece in prefixes(A, 8, 17)], [PARIS]),
    "14 parallel snapshots": ([calls(entry(0, "", NAME, A[:5])), calls(entry(0, "", NAME, A)), calls(entry(0, "", NAME, A), entry(1, "", NAME, B[:4])), calls(entry(0, "", NAME, A), entry(1, "", NAME, B))], [PARIS, ROME]),
    "14 a nested object": ([call(0, "x", NAME, '{"a": '), call(0, "", None, '{"a": 1}}')], [(NAME, '{"a": {"a": 1}}')]),
    "14 a nested object in pieces": ([call(0, "x", NAME, '{"a": '), call(0, "", None, '{"a": '), call(0, "", None, "1}"), call(0, "", None, "}")], [(NAME, '{"a": {"a": 1}}')]),
    "14 equal pieces of a string": ([call(0, "x", NAME, '{"a": "'), call(0, "", None, "ha"), call(0, "", None, "ha"), call(0, "", None, '"}')], [(NAME, '{"a": "haha"}')]),
    "15 interleaved": ([calls(entry(0, None, NAME, ""), entry(1, None, NAME, "")), call(0, None, None, '{"city": '), call(1, None, None, '{"city": '), calls(entry(1, None, None, '"Rome"}'), entry(0, None, None, '"Paris"}'))], [PARIS, ROME]),
    "16 an object, null, nothing": ([call(0, "x", NAME, {"city": "Paris"}), call(1, "y", "now", "-"), call(2, "z", "now")], [(NAME, '{"city":"Paris"}'), NOW, NOW]),
    "17 two calls in one delta": ([calls(entry(0, "x", NAME, A), entry(1, "y", NAME, B))], [PARIS, ROME]),
    "24 function_call": ([chunk({"function_call": {"name": NAME, "arguments": ""}}), chunk({"function_call": {"arguments": A[:7]}}), chunk({"function_call": {"name": None, "arguments": A[7:]}})], [PARIS]),
    "24 function_call beside the same": ([chunk({"tool_calls": [entry(0, "x", NAME, A)], "function_call": {"name": NAME, "arguments": A}})], [PARIS]),
    "26 padding": ([call(0, "", "", ""), call(3, "-", "-", " "), call(0, "x", NAME, ""), call(1, "", "-", ""), call(0, "", "-", A), call(2, "", "", " \n")], [PARIS]),
    "26 blanks of a string": ([call(0, "x", NAME, '{"a": "x'), call(0, "", None, " "), call(0, "", None, 'y"}')], [(NAME, '{"a": "x y"}')]),
    "27 no function": ([calls({"index": 0}, {"index": 0, "function": None}, {"index": 0, "id": "x", "function": None}, {}), call(0, None, NAME, ""), call(0, None, None, A), calls({"index": 0, "id": "", "function": None})], [PARIS]),
    "no entries at all": ([chunk({"tool_calls": [None, "x", entry(0, "x", NAME, A)]})], [PARIS]),
    "a split name": ([call(0, "x", "get"), call(0, "", "_wea"), call(0, "", "ther"), call(0, "", None, A)], [PARIS]),
    "a split name, ids in each": ([call(0, "x", "write_"), call(0, "x", "file"), call(0, "x", None, "{}")], [("write_file", "{}")]),
    "a name that begins another": ([call(0, "x", "write"), call(0, "", None, "{}")], [("write", "{}")]),
    "a name that begins another, no arguments": ([call(0, "x", "write")], [("write", "{}")]),
    "halves of a character as escapes": ([call(0, "x", NAME, '{"city": "\\ud83c'), call(0, "", None, '\\udf0a"}')], [(NAME, '{"city": "\\ud83c\\udf0a"}')]),
    "a nameless call beside another": ([call(0, "x", None, A), call(1, "y", NAME, A)], [PARIS]),
}  # fmt: skip
COUNTS = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
ENDS = {
    "stop": [chunk(None, "stop"), DONE],
    "missing": [DONE],
    "empty": [chunk(None, ""), DONE],
    "no done": [chunk(None, "tool_calls")],
    "twice, late payload, usage": [chunk({"content": ""}, "tool_calls", usage=COUNTS),
        chunk({"content": "late"}, "stop"), {"choices": [], "usage": COUNTS}, DONE],
}  # fmt: skip


@pytest.mark.parametrize(("items", "expected"), CASES.values(), ids=CASES.keys())
def test_quirks(items, expected):
    """For any deltas and any end of the response, the calls are those that the model made."""
    for end in ENDS.values():
        assert meaning(*items, *end) == ("", "", expected, "tool_calls")
    text = meaning(*texts("I look"), *items, *texts(" after"), *ENDS["stop"])
    assert text == ("I look after", "", expected, "tool_calls")


CUT = {
    "in the last": ([call(0, "x", NAME, A), call(1, "y", NAME, B[:9])], [PARIS, (NAME, B[:9])]),
    "in the first": ([call(0, "x", NAME, A[:9]), call(1, "y", NAME, B)], [(NAME, A[:9]), ROME]),
    "in a string": ([call(0, "x", NAME, A[:12])], [(NAME, A[:12])]),
}


@pytest.mark.parametrize(("items", "expected"), CUT.values(), ids=CUT.keys())
@pytest.mark.parametrize("reason", ["stop", "tool_calls", "", None, "length", "content_filter"])
def test_truncated_arguments(items, expected, reason):
    """Truncated arguments stay unchanged, and the finish reason is length, whatever the server reports."""
    said_so = reason if reason == "content_filter" else "length"
    assert meaning(*items, chunk(None, reason), DONE) == ("", "", expected, said_so)


FINISHES = [
    ("tool_calls", "stop"), ("function_call", "stop"), ("", "stop"), (None, "stop"), ("stop", "stop"),
    ("eos", "stop"),
    ("length", "length"), ("content_filter", "content_filter"),
]  # fmt: skip


@pytest.mark.parametrize(("sent", "reason"), FINISHES)
def test_finish_of_text(sent, reason):
    """The finish reason matches the text, even if content is sent with the finish."""
    assert meaning(*texts("a"), chunk(None, sent), DONE) == ("a", "", [], reason)
    assert meaning(*texts("a"), chunk({"content": "b"}, sent), DONE) == ("ab", "", [], reason)


def test_an_empty_reason_after_null_ends_a_response():
    """Without [DONE] an empty finish reason is an end only if earlier chunks had null."""
    assert meaning(call(0, "x", NAME, A), chunk(None, "")) == ("", "", [PARIS], "tool_calls")
    _, error = same(chunk({"content": "a"}, ""), chunk({"content": "b"}, ""))
    assert error is not None


FAILED = {
    "error_finish": [*texts("a"), chunk({"content": "Throttled: slow down"}, "error_finish"), DONE],
    "error_finish after a call": [call(0, "x", NAME, A),
        chunk({"content": '{"error": {"code": "x", "message": "y"}}'}, "error_finish")],
    "the end of the bytes": [*texts("a")],
    "the end of the bytes in a call": [call(0, "x", NAME, A)],
    "one choice of two": [*texts("a"), *texts("b", index=1), chunk(None, "stop", index=1)],
    "only a nameless call": [call(0, "x", None, A), chunk(None, "tool_calls"), DONE],
    "an error object": [*texts("a"), {"error": {"message": "boom", "code": "x"}}],
    "an error in words": [*texts("a"), {"error": "boom"}],
    "a DashScope error": [*texts("a"), {"code": "InternalError", "message": "boom", "request_id": "r"}],
    "an error event": [*texts("a"), b'event: error\ndata: {"message": "boom"}\n\n'],
    "broken JSON": [*texts("a"), b'data: {"choices": [{"delta"\n\n', DONE],
}  # fmt: skip


@pytest.mark.parametrize("items", FAILED.values(), ids=FAILED.keys())
def test_failures(items):
    """A truncated response ends in one error, after the received events; the error is no text."""
    choices, error = same(*items)
    assert error is not None
    assert all(choice["reason"] is None or number for number, choice in choices.items())
    assert "Throttled" not in choices.get(0, {"text": ""})["text"]


def test_held_parts_precede_a_failure():
    """Ambiguous arguments and names that were held are sent when the stream fails."""
    choices, _ = same(call(0, "x", NAME, '{"a": '), call(0, "", None, '{"a": 1'))
    assert choices[0]["calls"] == [[NAME, '{"a": {"a": 1']]
    choices, _ = same(call(0, "x", "write"))
    assert choices[0]["calls"] == [["write", ""]]


def test_a_call_waits_for_the_previous_one():
    """Calls are sent one after the other; the first is streamed, and a complete one blocks no other."""
    stage = tool_calls.build_pipeline(decoded({}))
    flow = [
        (0, "x", NAME, "", [0]), (1, "y", NAME, '{"city": "R', []), (0, "", None, '{"city": ', [0]),
        (1, "", None, 'ome"}', []),
        (2, "z", "now", "", []), (0, "", None, '"Paris"}', [0, 1, 1, 1, 2]), (2, "", None, "{}", [2]),
        (3, "w", "now", "{}", [3, 3]),
    ]  # fmt: skip
    for index, id, name, arguments, left in flow:
        assert [event.index for event in stage.feed(RawToolCallDelta(index, id, name, arguments))] == left
    assert meaning(call(0, "x", "now", ""), call(1, "y", NAME, A), *ENDS["stop"])[2] == [NOW, PARIS]


@pytest.mark.parametrize("other", [0, 1])
def test_choices_are_separate(other):
    """Interleaved choices, even in one chunk, have their own text, calls and end."""
    one = 1 - other
    choices, _ = same(
        chunk({"role": "assistant", "content": ""}, index=one),
        chunk({"tool_calls": [entry(0, "x", NAME, A[:6])]}, index=one),
        {"choices": [chunk({"content": "h"}, index=other)["choices"][0],
            chunk({"tool_calls": [entry(0, "", None, A[6:])]}, index=one)["choices"][0]]},
        *texts("i", index=other),
        chunk(None, "stop", index=other),
        chunk(None, "stop", index=one),
        DONE,
    )  # fmt: skip
    assert (choices[other]["text"], choices[other]["reason"]) == ("hi", "stop")
    assert (choices[one]["calls"], choices[one]["reason"]) == ([[NAME, A]], "tool_calls")


@pytest.mark.parametrize("asked", [True, False])
@pytest.mark.parametrize("where", ["every chunk", "finish", "after", "nowhere"])
def test_usage(asked, where):
    """Usage is sent once, last, and only on request, wherever the server sends it."""
    every = {"usage": COUNTS} if where == "every chunk" else {}
    finish = {"usage": COUNTS} if where in ("every chunk", "finish") else {"usage": None}
    tail = [{"choices": [], "usage": COUNTS}] if where in ("every chunk", "after") else []
    items = [chunk({"content": "a"}, **every), chunk(None, "stop", **finish), *tail, DONE]
    body = {"stream_options": {"include_usage": True}} if asked else {}
    assert meaning(*items, body=body) == ("a", "", [], "stop")


LEGACY = {"tools": None, "functions": [{"name": NAME, "parameters": {"type": "object"}}]}


def test_deprecated_functions_get_function_call():
    """A client of `functions` gets `function_call`, streamed and whole."""
    assert meaning(call(0, "x", NAME, A), chunk(None, "tool_calls"), DONE, body=LEGACY)[2:] == (
        [PARIS],
        "function_call",
    )


def test_custom_tools_get_bare_input():
    """A custom tool's input is forwarded unchanged, in OpenAI's shape for it."""
    body = {"tools": [{"type": "custom", "custom": {"name": "patch"}}]}
    items = [
        call(0, "x", "patch", '{"inp'),
        call(0, "", None, 'ut": "a\\nb \\"'),
        call(0, "", None, 'c\\""}'),
    ]
    assert meaning(*items, chunk(None, "stop"), DONE, body=body)[2:] == (
        [("patch", 'a\nb "c"')],
        "tool_calls",
    )


WHOLE = {
    "no index, no ids": ([entry(None, None, "now", "{}"), entry(None, None, "now", "{}")], [NOW, NOW]),
    "one index": ([entry(0, None, "now", ""), entry(0, None, "now", "")], [NOW, NOW]),
    "one id": ([entry(0, "x", NAME, A), entry(1, "x", NAME, B)], [PARIS, ROME]),
    "objects": ([entry(None, "x", NAME, {"city": "Paris"}), entry(None, "y", "now", "-")],
        [(NAME, '{"city":"Paris"}'), NOW]),
    "bad JSON": ([entry(0, "x", NAME, "{'a': 1}")], [(NAME, "{'a': 1}")]),
}  # fmt: skip


@pytest.mark.parametrize(("entries", "expected"), WHOLE.values(), ids=WHOLE.keys())
@pytest.mark.parametrize("dialect", ["compatible", "dashscope"])
def test_whole_bodies(entries, expected, dialect):
    """A whole body has as many calls as entries."""
    choices = [{"index": 0, "message": {"content": "", "tool_calls": entries}, "finish_reason": "stop"}]
    body = {"choices": choices} if dialect == "compatible" else {"output": {"choices": choices}}
    turn = decoded({})
    stage = tool_calls.build_pipeline(turn)
    out = [event for item in DIALECTS[dialect].response(body, TARGET) for event in stage.feed(item)]
    (choice,) = read_whole(chat.response(turn, out)).values()
    assert [tuple(one) for one in choice["calls"]] == expected
    assert choice["reason"] == "tool_calls"
