"""Bounds of streaming: held text is short, it is released at its limit, and work grows with the response's
length.

Work is counted, not timed: the characters that the parsers read, and those that decide on arguments.
"""

from collections import Counter

import pytest

from qproxy.wire import tool_calls
from qproxy.wire.cumulative import CumulativeText
from qproxy.wire.events import (
    ChoiceFinished,
    RawToolCallDelta,
    ReasoningDelta,
    StreamDone,
    TextDelta,
    ToolCallArgumentsDelta,
)
from qproxy.wire.tool_calls import ModelProfile, call_router
from qproxy.wire.tool_calls.arguments import ArgumentsAccumulator
from qproxy.wire.tool_calls.json_state import JSONState
from qproxy.wire.tool_calls.text_buffer import TextBuffer
from tests.wire.pipeline import decoded

TURN = decoded({}, stream=True)
LONGEST = len("get_weather")


def lag(text, *, head="", kind=TextDelta, profile=ModelProfile()):  # noqa: B008 - frozen
    """Return the most characters held back at any time while `text` arrives one by one after `head`."""
    stage = tool_calls.build_pipeline(TURN, profile)
    for _ in stage.feed(kind(head)):
        pass
    most = gone = 0
    for came, char in enumerate(text, 1):
        gone += sum(len(getattr(event, "text", "")) for event in stage.feed(kind(char)))
        most = max(most, came - gone)
    return most


PROSE = "A < b, <p>, </p>, `<tool_call>`, <tool_cal, </tool_cal, <function, ✿ and ✿FUNCTIO: no markers. " * 3
STRING = '<tool_call>{"name": "write_file", "arguments": {"content": "'
TAGS = "<tool_call>\n<function=write_file>\n<parameter=content>\n"
HELD = {
    "prose": (PROSE, "a", TextDelta, 11),
    "prose, every tag broken off": ("<tool_call<function</tool_call✿FUNCTION" * 3, "a", TextDelta, 11),
    "an opener, then prose": ("<tool_call> is a tag" * 3, "a", TextDelta, 12),
    "an opener, blanks, then prose": ("<tool_call>    is a tag", "a", TextDelta, 16),
    "an opener, half a function": ("<tool_call>\n<functio is a tag", "a", TextDelta, 21),
    "a bare function": ("<function=get_weather> is a tag", "a", TextDelta, 10 + LONGEST + 2),
    "a bare function, undeclared": ("<function=" + "other" * 20 + "> is a tag", "a", TextDelta, 12),
    "a bare function, half a parameter": ("<function=get_weather>\n<parameterx", "a", TextDelta,
        10 + LONGEST + 1 + 1 + 11),
    "marker words": ("\n✿FUNCTIO, \n✿ARGS✿", "a", TextDelta, 10),
    "marker words, undeclared": ("\n✿FUNCTION✿: " + "other" * 20, "a", TextDelta, 14),
    "the start of an answer": ("\n<thin air", "", TextDelta, 7),
    "a thought": ("a < b, </p>, </thin, </think" * 3, "<think>a", TextDelta, 8),
    "a structured thought": (PROSE, "a", ReasoningDelta, 11),
    "arguments in JSON": ("x < y </tool_cal <tool_call>{} , : co code" * 4, STRING, TextDelta, 1),
    "arguments in JSON, escapes": ('\\" \\n \\u00e9 \\\\' * 4, STRING, TextDelta, 9),
    "a value in tags": ("x < y </paramete </functio <tool_cal {}\n\n" * 4, TAGS, TextDelta, 12),
    "a value in tags, closers": ("a</parameter>   b\n</function> c\n</tool_call> d" * 3, TAGS, TextDelta, 16),
}  # fmt: skip


@pytest.mark.parametrize(("text", "head", "kind", "most"), HELD.values(), ids=HELD.keys())
def test_hold_back(text, head, kind, most):
    """Only text that may still become a marker is held."""
    assert lag(text, head=head, kind=kind) <= most


LIMITS = {
    "no name": '<tool_call>{"x": "' + "y" * 70_000,
    "no name, many keys": "<tool_call>{" + '"x": 1, ' * 9_000,
    "arguments before a name": '<tool_call>{"arguments": {"x": "' + "y" * 70_000,
    "blanks after the opener": "<tool_call>" + " " * 70_000,
    "blanks at the start": " " * 70_000,
    "blanks in JSON": '<tool_call>{"name": ' + " " * 70_000,
    "a name without an end": "<tool_call><function=" + "x" * 70_000,
    "a thought of blanks": "<think>a" + " " * 70_000 + "b",
    "marker words without arguments": "✿FUNCTION✿: now" + " " * 70_000,
}


@pytest.mark.parametrize("text", LIMITS.values(), ids=LIMITS.keys())
@pytest.mark.parametrize("size", [7, 1000, 100_000])
def test_unconfirmed_text_is_released(text, size):
    """At a limit of about 64 KiB unconfirmed text is forwarded; none of it is lost, at any cut."""
    stage = tool_calls.build_pipeline(TURN)
    gone = []
    for at in range(0, len(text), size):
        gone += [
            event.text for event in stage.feed(TextDelta(text[at : at + size])) if hasattr(event, "text")
        ]
    before = sum(map(len, gone))
    gone += [
        e.text
        for end in (ChoiceFinished("stop"), StreamDone())
        for e in stage.feed(end)
        if hasattr(e, "text")
    ]
    assert "".join(gone) == text.removeprefix("<think>")
    assert before >= len(text) - 66_000


class Work:
    """Counts characters that were read or copied."""

    def __init__(self, monkeypatch):
        self.done = 0
        self.count(monkeypatch, TextBuffer, "take_chunk", lambda found, *_: len(found))
        self.count(monkeypatch, TextBuffer, "consume", lambda found, *_: len(found))
        self.count(monkeypatch, TextBuffer, "_from", lambda found, *_: len(found))
        self.count(monkeypatch, JSONState, "read_until_end", lambda end, text, position=0: end - position)
        plain = TextBuffer.find

        def find(source, pattern, start=0, limit=1 << 60):
            found = plain(source, pattern, start, limit)
            self.done += min(limit, (len(source) if found < 0 else found) - start) + 1
            return found

        monkeypatch.setattr(TextBuffer, "find", find)

    def count(self, monkeypatch, owner, name, size):
        plain = getattr(owner, name)

        def counted(itself, *args, **options):
            found = plain(itself, *args, **options)
            self.done += size(found, *args, **options)
            return found

        monkeypatch.setattr(owner, name, counted)


LONG = {
    "prose": lambda n: "word < b " * (n // 9),
    "openers": lambda n: "<tool_call>x" * (n // 12),
    "openers of lists": lambda n: "<tool_call>[" * (n // 12),
    "arguments": lambda n: STRING + "x" * n + '"}}\n</tool_call>',
    "arguments, nested": lambda n: '<tool_call>{"name": "write_file", "arguments": ' + '{"a":' * (n // 5),
    "arguments, encoded": lambda n: '<tool_call>{"name": "write_file", "arguments": "{\\"a\\": \\"' + "y" * n,
    "arguments, broken": lambda n: '<tool_call>{"name": "write_file", "arguments": {a' + "} " * (n // 2),
    "code": lambda n: '<tool_call>{"name": "run_code", "arguments": {"code": ""}}<code>' + "x" * n,
    "small calls": lambda n: '<tool_call>{"name": "now"}</tool_call>\n' * (n // 39),
    "a value": lambda n: TAGS + "x\n" * (n // 2),
    "a value of tags": lambda n: TAGS + "<p>a</p>\n</parameter>x" * (n // 23),
    "a typed value": lambda n: "<tool_call><function=get_weather><parameter=days>" + "<1" * (n // 2),
    "functions": lambda n: "<tool_call><function=now></function></tool_call>\n" * (n // 50),
    "code after marker words": lambda n: "✿FUNCTION✿: run_code\n✿ARGS✿: ```py\n" + "x\n" * (n // 2),
    "a thought": lambda n: "<think>" + "a < b </think " * (n // 14),
}
BARE = {
    "bare JSON": lambda n: '{"name": "write_file", "arguments": {"content": "' + "x" * n + '"}}',
    "fenced JSON": lambda n: (
        '```json\n{"name": "write_file", "arguments": {"content": "' + "x" * n + '"}}\n```'
    ),
    "fenced lines": lambda n: "```json\n" + "{\n" * (n // 2),
}


@pytest.mark.parametrize("make", [*LONG.values(), *BARE.values()], ids=[*LONG, *BARE])
@pytest.mark.parametrize("size", [7, 1 << 30], ids=["small deltas", "one delta"])
def test_work_is_linear(make, size, monkeypatch):
    """Twice the response is twice the work, in one delta and in very many."""
    work = Work(monkeypatch)
    profile = ModelProfile(bare_json=make in BARE.values())
    spent = []
    for length in (8_000, 16_000):
        text, work.done = make(length), 0
        stage = tool_calls.build_pipeline(TURN, profile)
        for at in range(0, len(text), size):
            for _ in stage.feed(TextDelta(text[at : at + size])):
                pass
        for _ in (*stage.feed(ChoiceFinished("stop")), *stage.feed(StreamDone())):
            pass
        spent.append(work.done)
    assert spent[1] < 2.3 * spent[0] + 4_000


def test_structured_arguments_are_read_once(monkeypatch):
    """Arguments in very many deltas are read at most once, and joined only on demand."""
    work = Work(monkeypatch)
    joined = []

    class Watched(ArgumentsAccumulator):
        @property
        def text(self):
            joined.append(self.size)
            return super().text

    monkeypatch.setattr(call_router, "ArgumentsAccumulator", Watched)
    stage = tool_calls.build_pipeline(TURN)
    count = 10_000
    pieces = ['{"content": "', *["eleven char"] * count, '"}']
    first, *rest = pieces
    deltas = [RawToolCallDelta(0, "x", "write_file", first)] + [
        RawToolCallDelta(0, "", None, text) for text in rest
    ]
    out = [event for delta in deltas for event in stage.feed(delta)]
    assert [event.text for event in out if isinstance(event, ToolCallArgumentsDelta)] == pieces
    assert work.done <= sum(map(len, pieces))
    assert len(joined) <= 2


def test_each_call_has_the_same_cost(monkeypatch):
    """Each entry looks up its call once, however many calls precede it."""
    looked = []
    plain = call_router.CallRouter.call_for

    def addressed(choice, index):
        looked.append(index)
        return plain(choice, index)

    monkeypatch.setattr(call_router.CallRouter, "call_for", addressed)
    stage = tool_calls.build_pipeline(TURN)
    entries = [RawToolCallDelta(n % 7, f"id{n}", "now", "{}") for n in range(3000)]
    out = [event for entry in entries for event in stage.feed(entry)]
    assert len(out) == 2 * len(entries)
    assert len(looked) == len(entries)


def test_a_cumulative_profile_is_free_without_repetition():
    """New text is forwarded unchanged, and not compared with all earlier text."""
    stage = CumulativeText(Counter())
    texts = [f"{n} " for n in range(3000)]
    assert [event for text in texts for event in stage.feed(TextDelta(text))] == [
        TextDelta(text) for text in texts
    ]
