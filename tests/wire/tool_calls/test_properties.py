"""Properties of all of `tool_calls`: composed replies are parsed back at any cut, and no text raises."""

import json

from hypothesis import given
from hypothesis import strategies as st

from qproxy.wire import tool_calls
from qproxy.wire.events import ChoiceFinished, ReasoningDelta, StreamDone, TextDelta, Turn
from tests.examples import examples
from tests.wire.strategies import TOOLS, joined, prose, replies
from tests.wire.tool_call_contract import check, fold

TURN = Turn(id="chatcmpl-1", created=0, model="m", messages=[], tools=TOOLS)
PROFILES = [
    tool_calls.ModelProfile(),
    tool_calls.ModelProfile(implied_think=True),
    tool_calls.ModelProfile(bare_json=True),
    tool_calls.ModelProfile(react=True),
    tool_calls.ModelProfile(cumulative=True),
]


def cut(text, places):
    """Return the text cut at places given as fractions of its length."""
    spots = sorted({int(place * len(text)) for place in places} - {0, len(text)})
    return [text[a:b] for a, b in zip([0, *spots], [*spots, len(text)], strict=True)]


def play(pieces, finish="stop", profile=PROFILES[0], kind=TextDelta):
    stage = tool_calls.build_pipeline(TURN, profile)
    out = [event for piece in pieces for event in stage.feed(kind(piece))]
    for end in (ChoiceFinished(finish), StreamDone()):
        out += stage.feed(end)
    out += stage.close()
    check(out)
    return out


cuts = st.lists(st.floats(0, 1), max_size=12)


@given(replies(), cuts)
@examples(250)
def test_composed_replies_are_parsed_back(pieces, places):
    """Random replies in any mixture of spellings give their text and calls."""
    written, shown, calls = joined(pieces)
    folded = fold(play(cut(written, places)))[0]
    assert [(name, json.loads(text)) for _, name, text in folded["calls"]] == calls
    assert folded["text"] == shown
    assert folded["reason"] == ("tool_calls" if calls else "stop")


@given(replies(), prose, cuts)
@examples(100)
def test_reasoning_before_a_reply(pieces, thought, places):
    """Reasoning before the reply changes nothing in it."""
    written, shown, calls = joined(pieces)
    folded = fold(play(cut(f"<think>{thought}</think>{written}", places)))[0]
    assert [(name, json.loads(text)) for _, name, text in folded["calls"]] == calls
    assert folded["text"].strip() == shown.strip()
    assert folded["thought"] == thought.strip()


FRAGMENTS = [
    "<tool_call>", "</tool_call>", "<function=", "alpha", ">", "</function>", "<parameter=", "a>",
    "</parameter>", "\n", " ", "{", "}", "[", "]",
    '"', ":", ",", '"name"', '"arguments"', '"alpha"', "\\", "```", "`", "<think>", "</think>", "✿FUNCTION✿",
    "✿ARGS✿", "✿RESULT✿", "word",
    "Action:", "Action Input:", "Observation:", "<code>", "</code>", "\r", "\ud83c", "null", "1",
    '{"name": "alpha", "arguments": {"a": "b"}}', "<", "/", "=",
]  # fmt: skip


@given(
    st.lists(st.sampled_from(FRAGMENTS), max_size=24).map("".join),
    cuts,
    st.sampled_from(["stop", "length", "tool_calls", ""]),
    st.sampled_from(PROFILES[:4]),
    st.sampled_from([TextDelta, ReasoningDelta]),
)
@examples(500)
def test_any_text_keeps_the_contract(text, places, finish, profile, kind):
    """For any text of a model nothing raises, the contract holds, and the cut makes no difference."""
    assert fold(play(cut(text, places), finish, profile, kind)) == fold(play([text], finish, profile, kind))


@given(replies(), st.data(), cuts)
@examples(200)
def test_mutated_replies(pieces, data, places):
    """A reply with parts deleted, doubled or inserted anywhere gives the same at any cut, and no word of
    prose is lost."""
    written = joined(pieces)[0]
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(written)))
        size = data.draw(st.integers(0, 6))
        put = data.draw(st.sampled_from(["", "", *FRAGMENTS, written[at : at + 9]]))
        written = written[:at] + put + written[at + size :]
    whole = fold(play([written]))[0]
    assert fold(play(cut(written, places)))[0] == whole
    if not whole["calls"] and not written.lstrip().startswith("<think>"):
        closer = "</tool_call>"  # a stray one before another block is dropped
        assert whole["text"].replace(closer, "").strip() == written.replace(closer, "").strip()


@given(st.text(max_size=60), cuts)
@examples(200)
def test_text_without_markers_is_unchanged(text, places):
    """Plain text is forwarded byte for byte."""
    if "<" not in text and "✿" not in text and text:
        assert fold(play(cut(text, places)))[0]["text"] == text
