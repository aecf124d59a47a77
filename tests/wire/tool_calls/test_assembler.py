"""Structured tool-call deltas: every known fault of servers, and the repaired result."""

import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qproxy.wire import tool_calls
from qproxy.wire.dialects import DIALECTS, UpstreamTarget
from qproxy.wire.errors import UpstreamError
from qproxy.wire.events import (
    ChoiceFinished,
    RawToolCallDelta,
    ReasoningDelta,
    StreamDone,
    StreamFailed,
    TextDelta,
    ToolCallArgumentsDelta,
    Turn,
    Usage,
)
from qproxy.wire.pipeline import Pipeline
from qproxy.wire.sse import ServerSentEvent
from qproxy.wire.tool_calls.json_state import JSONState
from tests.examples import examples
from tests.wire.tool_call_contract import check, fold

NAMES = ("lookup", "write", "write_note", "one", "two")
TOOLS = [{"type": "function", "function": {"name": name}} for name in NAMES]
TURN = Turn(id="chatcmpl-1", created=0, model="m", messages=[], tools=TOOLS)


def d(index=None, id=None, name=None, args=None, choice=0):
    return RawToolCallDelta(index, id, name, args, choice)


def run(*events, profile=tool_calls.ModelProfile(), repairs=None):  # noqa: B008 - frozen
    stage = tool_calls.build_pipeline(TURN, profile, Counter() if repairs is None else repairs)
    out = [result for event in events for result in stage.feed(event)]
    out += stage.close()
    check(out)
    return out


def calls(*events):
    """Return [(id, name, arguments)] of choice 0, and its finish reason."""
    folded = fold(run(*events))[0]
    return [tuple(call) for call in folded["calls"]], folded["reason"]


END = (ChoiceFinished("tool_calls"), StreamDone())
A = '{"a": 1}'
FIRST = TURN.call_id(0, 0)
SECOND = TURN.call_id(0, 1)

CASES = {
    "1 empty ids on fragments": ((d(0, "x", "lookup", ""), d(0, "", None, '{"a"'), d(0, "", "", ": 1}"),
        *END), [("x", "lookup", A)]),
    "3 index reused with a new id": ((d(0, "x", "one", A), d(0, "y", "two", A), *END),
        [("x", "one", A), ("y", "two", A)]),
    "4 fragments after a collision go to the latest": (
        (d(0, "x", "one", A), d(0, "y", "two", '{"b"'), d(0, "", None, ": 2}"), *END),
        [("x", "one", A), ("y", "two", '{"b": 2}')],
    ),
    "5 index missing": ((d(None, "x", "one", '{"a"'), d(None, None, None, ": 1}"), d(None, "y", "two", A),
        *END), [("x", "one", A), ("y", "two", A)]),
    "6 indices with gaps": ((d(1, "x", "one", A), d(7, "y", "two", A), *END),
        [("x", "one", A), ("y", "two", A)]),
    "7 ids never sent": ((d(0, None, "one", A), d(1, None, "two", A), *END),
        [(FIRST, "one", A), (SECOND, "two", A)]),
    "7 id only for the first call": ((d(0, "x", "one", A), d(1, None, "two", A), *END),
        [("x", "one", A), (SECOND, "two", A)]),
    "8 the same id on two calls": ((d(0, "x", "one", A), d(1, "x", "two", A), *END),
        [("x", "one", A), (SECOND, "two", A)]),
    "8 the same id on two calls without an index": (
        (d(None, "x", "one", ""), d(None, None, None, A), d(None, "x", "two", A), d(None, "x", "lookup"),
            *END),
        [("x", "one", A), (SECOND, "two", A), (TURN.call_id(0, 2), "lookup", "{}")],
    ),
    "8 the same id and index on two calls": ((d(0, "x", "one", A), d(0, "x", "two", A), *END),
        [("x", "one", A), (SECOND, "two", A)]),
    "9 id after name": ((d(0, None, "lookup"), d(0, "x"), d(0, None, None, A), *END), [(FIRST, "lookup", A)]),
    "10 id, then name, then arguments": ((d(0, "x"), d(0, None, "lookup"), d(0, None, None, A), *END),
        [("x", "lookup", A)]),
    "10 arguments before the name": ((d(0, "x", None, '{"a"'), d(0, None, "lookup", ": 1}"), *END),
        [("x", "lookup", A)]),
    "11 name in every delta": ((d(0, "x", "lookup", '{"a"'), d(0, "x", "lookup", ": 1}"), *END),
        [("x", "lookup", A)]),
    "11 name in every delta, no id": ((d(0, None, "lookup", '{"a"'), d(0, None, "lookup", ": 1}"), *END),
        [(FIRST, "lookup", A)]),
    "13 arguments replayed": ((d(0, "x", "lookup", A), d(0, "", None, A), *END), [("x", "lookup", A)]),
    "13 arguments replayed, name in every delta": (
        (d(0, "x", "lookup", ""), d(0, "", "lookup", A[:4]), d(0, "", "lookup", A[4:]), d(0, "", "lookup", A), *END),
        [("x", "lookup", A)],
    ),
    "13 whole call replayed": ((d(0, "x", "lookup", A), d(0, "x", "lookup", A), *END), [("x", "lookup", A)]),
    "14 cumulative arguments": ((d(0, "x", "lookup", '{"a'), d(0, "", None, '{"a": 1'), d(0, "", None, A), *END), [("x", "lookup", A)]),
    "14 a nested object is no repetition": ((d(0, "x", "lookup", '{"a": '), d(0, "", None, '{"a": 1}}'), *END), [("x", "lookup", '{"a": {"a": 1}}')]),
    "15 interleaved by index": (
        (d(0, None, "one", '{"a"'), d(1, None, "two", '{"b"'), d(0, None, None, ": 1}"), d(1, None, None, ": 2}"), *END),
        [(FIRST, "one", A), (SECOND, "two", '{"b": 2}')],
    ),
    "16 arguments as an object": ((d(0, "x", "lookup", {"a": 1}), *END), [("x", "lookup", '{"a":1}')]),
    "16 arguments null": ((d(0, "x", "lookup", None), *END), [("x", "lookup", "{}")]),
    "16 arguments empty": ((d(0, "x", "lookup", ""), d(0, "", None, ""), *END), [("x", "lookup", "{}")]),
    "17 whole calls in one delta": ((d(0, "x", "one", A), d(1, "y", "two", A), *END), [("x", "one", A), ("y", "two", A)]),
    "20 finish stop": ((d(0, "x", "one", A), ChoiceFinished("stop"), StreamDone()), [("x", "one", A)]),
    "21 finish empty": ((d(0, "x", "one", A), ChoiceFinished(""), StreamDone()), [("x", "one", A)]),
    "21 finish null in words": ((d(0, "x", "one", A), ChoiceFinished("null"), StreamDone()), [("x", "one", A)]),
    "21 finish missing": ((d(0, "x", "one", A), StreamDone()), [("x", "one", A)]),
    "26 padding": ((d(1, "", "", " "), d(0, "x", "one", A), d(0, "", "", ""), d(3), *END), [("x", "one", A)]),
    "26 blanks inside a string are no padding": ((d(0, "x", "one", '{"a": "b'), d(0, "", "", "  "), d(0, "", "", 'c"}'), *END), [("x", "one", '{"a": "b  c"}')]),
    "split name": ((d(0, "x", "write_"), d(0, "", "note"), d(0, "", None, A), *END), [("x", "write_note", A)]),
    "a name that begins another": ((d(0, "x", "write"), d(0, "", None, A), *END), [("x", "write", A)]),
    "undeclared names pass": ((d(0, "x", "unknown", A), *END), [("x", "unknown", A)]),
}  # fmt: skip


@pytest.mark.parametrize(("events", "expected"), CASES.values(), ids=CASES.keys())
def test_quirks(events, expected):
    """For any deltas, the calls are those that the model made."""
    assert calls(*events) == (expected, "tool_calls")


FINISHES = {
    "text and stop": ((TextDelta("a"), ChoiceFinished("stop"), StreamDone()), "stop"),
    "text but tool_calls": ((TextDelta("a"), ChoiceFinished("tool_calls"), StreamDone()), "stop"),
    "text but function_call": ((TextDelta("a"), ChoiceFinished("function_call"), StreamDone()), "stop"),
    "text without a finish": ((TextDelta("a"), StreamDone()), "stop"),
    "text and length": ((TextDelta("a"), ChoiceFinished("length"), StreamDone()), "length"),
    "text and content_filter": ((TextDelta("a"), ChoiceFinished("content_filter"), StreamDone()),
        "content_filter"),
    "finish but no done": ((TextDelta("a"), ChoiceFinished("stop")), "stop"),
    "call cut, length": ((d(0, "x", "one", '{"a'), ChoiceFinished("length"), StreamDone()), "length"),
    "call cut, stop": ((d(0, "x", "one", '{"a'), ChoiceFinished("stop"), StreamDone()), "length"),
    "call cut, tool_calls": ((d(0, "x", "one", '{"a'), *END), "length"),
    "call cut, no finish": ((d(0, "x", "one", '{"a'), StreamDone()), "length"),
    "call and length": ((d(0, "x", "one", A), ChoiceFinished("length"), StreamDone()), "length"),
    "call and content_filter": ((d(0, "x", "one", A), ChoiceFinished("content_filter"), StreamDone()),
        "content_filter"),
    "finish twice": ((TextDelta("a"), ChoiceFinished("stop"), ChoiceFinished("length"), StreamDone()),
        "stop"),
    "text after the finish": ((TextDelta("a"), ChoiceFinished("stop"), TextDelta("b"), StreamDone()), "stop"),
}  # fmt: skip


@pytest.mark.parametrize(("events", "reason"), FINISHES.values(), ids=FINISHES.keys())
def test_finish(events, reason):
    """The finish reason matches the events that were sent."""
    folded = fold(run(*events))[0]
    assert folded["reason"] == reason
    assert folded["text"] in ("a", "")
    assert all(arguments != "" for _, _, arguments in folded["calls"])


FAILED = {
    "nothing and the end": (TextDelta("a"),),
    "call and the end": (d(0, "x", "one", A),),
    "no event at all": (),
    "error_finish": (TextDelta("a"), ChoiceFinished("error_finish"), StreamDone()),
    "nameless call": (d(0, "x", None, A), *END),
    "a failure of the server": (TextDelta("a"), StreamFailed(UpstreamError("x"))),
}


@pytest.mark.parametrize("events", FAILED.values(), ids=FAILED.keys())
def test_failures(events):
    """A truncated stream, or one that ends in an error, ends in an error."""
    assert isinstance(run(*events)[-1], StreamFailed)


def test_a_failure_after_the_finish_is_ignored():
    """A connection that fails after the finish does not fail the response."""
    assert run(TextDelta("a"), ChoiceFinished("stop"), StreamFailed(UpstreamError("x")))[
        -1
    ] == ChoiceFinished("stop")


def test_usage_after_the_finish_is_forwarded():
    """Usage may be the last event."""
    assert run(TextDelta("a"), ChoiceFinished("stop"), Usage(1, 2, 3), StreamDone())[-2:] == [
        Usage(1, 2, 3),
        StreamDone(),
    ]


def test_choices_are_separate():
    """Each choice has its own calls, ids and finish."""
    folded = fold(
        run(
            d(0, None, "one", A, 1),
            d(0, None, "two", A, 0),
            ChoiceFinished("stop", 1),
            ChoiceFinished("stop", 0),
            StreamDone(),
        )
    )
    assert [call[1] for call in folded[1]["calls"]] == ["one"]
    assert [call[1] for call in folded[0]["calls"]] == ["two"]


def test_repairs_are_counted():
    """Every repair has a kind and a count."""
    repairs: Counter[str] = Counter()
    run(d(None, None, "one", {"a": 1}), ChoiceFinished("stop"), StreamDone(), repairs=repairs)
    assert repairs == {"index_missing": 1, "arguments_object": 1, "id_missing": 1, "finish_corrected": 1}


def test_a_declared_name_is_sent_at_once():
    """A declared name that is no prefix of another one is sent without waiting; arguments follow in parts."""
    stage = tool_calls.build_pipeline(TURN)
    assert [type(e).__name__ for e in stage.feed(d(0, "x", "lookup", ""))] == ["ToolCallStart"]
    assert list(stage.feed(d(0, "", None, '{"a": "long'))) == [ToolCallArgumentsDelta(0, '{"a": "long')]


@given(
    st.lists(
        st.sampled_from([A, '{"s": "x\\"y{}"}', "[1, 2]", '{"n": {"m": null}}']), min_size=1, max_size=3
    ),
    st.data(),
)
@examples(200)
def test_any_cut_of_the_arguments(texts, data):
    """Arguments cut into any deltas add up to the original."""
    events = []
    for index, text in enumerate(texts):
        cuts = sorted(data.draw(st.lists(st.integers(1, len(text) - 1), max_size=5, unique=True)))
        parts = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        events += [d(index, f"id{index}", NAMES[index], parts[0])]
        events += [d(index, "", None, part) for part in parts[1:]]
    got, reason = calls(*events, *END)
    assert [arguments for _, _, arguments in got] == texts
    assert reason == "tool_calls"


@given(
    st.lists(
        st.builds(
            d,
            st.sampled_from([None, 0, 1, -1, 5]),
            st.sampled_from([None, "", "x", "y"]),
            st.sampled_from([None, "", "one", "write", "?"]),
            st.sampled_from([None, "", "{", "}", A, '"', {}, 1]),
        ),
        max_size=12,
    ),
    st.sampled_from([(), END, (StreamDone(),)]),
)
@examples(300)
def test_no_deltas_break_the_contract(deltas, end):
    """Random deltas raise nothing, and the output keeps the contract."""
    run(*deltas, *end)


THOUGHTS = {
    "tags": (["<think>hm</think>\n\nhi"], "hm", "hi"),
    "tags with newlines": (["\n<think>\nhm\n</think>\n\nhi"], "hm", "hi"),
    "no closer": (["<think>hm"], "hm", ""),
    "in the middle it is text": (["a <think>b</think>"], "", "a <think>b</think>"),
    "not quite": (["<thin"], "", "<thin"),
    "plain": (["hello"], "", "hello"),
    "unpaired closer is text": (["a</think>b"], "", "a</think>b"),
    "empty thought": (["<think>\n\n</think>\n\nhi"], "", "hi"),
    "blank answer": ([" "], "", " "),
}


@pytest.mark.parametrize(("texts", "thought", "text"), THOUGHTS.values(), ids=THOUGHTS.keys())
def test_reasoning_in_text(texts, thought, text):
    """Reasoning at the start of the text becomes reasoning, at any cut."""
    for pieces in (texts, list("".join(texts))):
        folded = fold(run(*[TextDelta(piece) for piece in pieces], ChoiceFinished("stop"), StreamDone()))[0]
        assert (folded["thought"], folded["text"]) == (thought, text)


FOUND = {
    "error_finish in a call": ((d(0, "x", "one", '{"a": '), ChoiceFinished("error_finish"), StreamDone()),
        [("StreamFailed", None)]),
    "blanks before a tag": ((TextDelta(" " * 70 + "<think>t</think>hi"), *END),
        [("TextDelta", " " * 70 + "<think>t</think>hi")]),
    "second closer": ((TextDelta("<think>t</think></think>hi"), *END),
        [("ReasoningDelta", "t"), ("TextDelta", "hi")]),
    "closer after structured": ((ReasoningDelta("t"), TextDelta("</think>\n\nhi"), *END),
        [("ReasoningDelta", "t"), ("TextDelta", "hi")]),
    "blanks after structured": ((ReasoningDelta("t"), TextDelta("\n\n"), TextDelta("hi"), *END),
        [("ReasoningDelta", "t"), ("TextDelta", "\n\nhi")]),
    "blanks before a call": ((ReasoningDelta("t"), TextDelta("\n\n"), d(0, "x", "one", "{}"), *END),
        [("ReasoningDelta", "t")]),
    "tag after a call": ((d(0, "x", "one", "{}"), TextDelta("<think>a</think>b"), *END),
        [("TextDelta", "<think>a</think>b")]),
}  # fmt: skip


@pytest.mark.parametrize(("events", "expected"), FOUND.values(), ids=FOUND.keys())
def test_faults_found_in_review(events, expected):
    """Faults found by reading the code are repaired at any cut of the text."""
    for sent in (
        events,
        [p for e in events for p in ([TextDelta(c) for c in e.text] if isinstance(e, TextDelta) else [e])],
    ):
        out = run(*sent)
        texts: dict[str, str] = {}
        for event in out:
            if isinstance(event, TextDelta | ReasoningDelta):
                kind = type(event).__name__
                texts[kind] = texts.get(kind, "") + event.text
        if expected == [("StreamFailed", None)]:
            assert isinstance(out[-1], StreamFailed)
        else:
            assert list(texts.items()) == expected


def test_a_late_delta_of_a_finished_choice():
    """A delta for a finished choice does not affect the other choices."""
    late = d(0, "z", None, "{", 0)
    out = run(
        TextDelta("a", 1),
        TextDelta("b", 0),
        ChoiceFinished("stop", 0),
        late,
        ChoiceFinished("stop", 0),
        TextDelta("c", 1),
        ChoiceFinished("stop", 1),
        StreamDone(),
    )
    assert fold(out)[1]["text"] == "ac"


def test_held_text_keeps_its_logprobs():
    """Log probabilities of held text are sent with it."""
    first, second = ({"content": [{"token": token}]} for token in ("<", "b>"))
    (event,) = (
        e
        for e in run(
            TextDelta("<", logprobs=first),
            TextDelta("b>", logprobs=second),
            ChoiceFinished("stop"),
            StreamDone(),
        )
        if isinstance(e, TextDelta)
    )
    assert event.logprobs == {"content": [{"token": "<"}, {"token": "b>"}], "refusal": None}


def test_implied_reasoning():
    """A model of the profile starts inside reasoning; one that writes the tag anyway is parsed, too."""
    profile = tool_calls.ModelProfile(implied_think=True)
    for text in ("hm</think>\n\nhi", "<think>hm</think>hi"):
        for pieces in ([text], list(text)):
            folded = fold(
                run(
                    *[TextDelta(piece) for piece in pieces],
                    ChoiceFinished("stop"),
                    StreamDone(),
                    profile=profile,
                )
            )[0]
            assert (folded["thought"], folded["text"]) == ("hm", "hi")
    folded = fold(
        run(ReasoningDelta("hm"), TextDelta("hi"), ChoiceFinished("stop"), StreamDone(), profile=profile)
    )[0]
    assert (folded["thought"], folded["text"]) == ("hm", "hi")


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
        max_leaves=8,
    ),
    st.integers(0, 200),
)
@examples(200)
def test_the_automaton_agrees_with_json(value, cut):
    """A JSON text is accepted at any cut, and is complete exactly at its end."""
    text = json.dumps([value])
    state = JSONState()
    assert state.feed(text[:cut])
    assert state.is_complete == (cut >= len(text))
    assert state.feed(text[cut:])
    assert state.is_complete
    assert not state.accepts("{")


@pytest.mark.parametrize("text", ["}", "{]", '{"a" 1', '{"a":,', "[1 2", "tru}", '{"a":1}{', "{1"])
def test_the_automaton_rejects(text):
    """The automaton rejects text that is not JSON."""
    assert not JSONState().feed(text)


def test_a_call_without_a_name_is_held_up_to_a_limit():
    """Arguments that never get a name end the response at the limit."""
    stage = tool_calls.build_pipeline(TURN)
    out = [e for n in range(10) for e in stage.feed(d(0, "x", None, "y" * 1_000_000 if n else '{"a": "'))]
    assert isinstance(out[-1], StreamFailed)
    assert len(out) == 1


def test_invalid_arguments_are_forwarded():
    """A model's invalid JSON reaches the client; only truncated JSON counts as truncated."""
    assert calls(d(0, "x", "one", "{'a': 1}"), *END) == ([("x", "one", "{'a': 1}")], "tool_calls")
    assert calls(d(0, "x", "one", "{'a': [1"), *END) == ([("x", "one", "{'a': [1")], "length")


def test_a_call_truncated_before_its_arguments_stays_open():
    """A call that was truncated before its arguments gets no {} that could be taken for them."""
    assert calls(d(0, "x", "one"), ChoiceFinished("length"), StreamDone()) == ([("x", "one", "")], "length")


def test_surrogates_split_across_deltas_are_joined():
    """A character that a server split into two escapes, one in each delta, arrives whole."""
    decoder = DIALECTS["compatible"].decoder(UpstreamTarget("http://h/v1", "m"))
    stage = Pipeline(decoder, tool_calls.build_pipeline(TURN))
    chunks = [
        r'{"choices":[{"delta":{"tool_calls":[{"index":0,"id":"x","function":{"name":"one","arguments":"{\"a\": \"\ud83c"}}]}}]}',
        r'{"choices":[{"delta":{"tool_calls":[{"index":0,"function":{"arguments":"\udf0a\"}"}}]},"finish_reason":"stop"}]}',
    ]
    out = [event for chunk in chunks for event in stage.feed(ServerSentEvent(chunk))]
    assert fold(out)[0]["calls"] == [["x", "one", '{"a": "🌊"}']]


def test_entries_of_a_whole_response_are_separate_calls():
    """Two calls of one function without arguments, indices and ids stay two."""
    call = {"function": {"name": "one", "arguments": ""}}
    body = {"choices": [{"message": {"tool_calls": [call, call]}, "finish_reason": "tool_calls"}]}
    events = DIALECTS["compatible"].response(body, UpstreamTarget("http://h/v1", "m"))
    assert [name for _, name, _ in fold(run(*events))[0]["calls"]] == ["one", "one"]
