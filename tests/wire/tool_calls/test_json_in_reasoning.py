"""Requested JSON that a server sent as reasoning, and an end of reasoning that it sent as text."""

from itertools import groupby

import pytest

from qproxy.wire.events import ReasoningDelta, TextDelta
from tests.wire.pipeline import (
    BODY,
    DONE,
    call,
    chunk,
    decoded,
    events,
    meaning,
    stream,
    texts,
    thought,
)

END = [chunk(None, "stop"), DONE]
SCHEMA = {"type": "object", "properties": {"label": {"type": "string"}}, "required": ["label"]}
REQUEST = {"type": "json_schema", "json_schema": {"name": "E", "schema": SCHEMA}}
CAT = '{"label": "cat"}'


def body(response_format=REQUEST, **more):
    return {**BODY, "tools": [], "response_format": response_format, **more}


@pytest.mark.parametrize("text", [CAT, f"\n{CAT}\n"])
@pytest.mark.parametrize("request_format", [REQUEST, {"type": "json_object"}])
def test_json_that_is_all_of_the_reasoning_is_content(text, request_format):
    """JSON of the requested kind becomes the content if a response has nothing else."""
    assert meaning(*thought(text), *END, body=body(request_format)) == (CAT, "", [], "stop")
    assert meaning(*thought(*text), *END, body=body(request_format)) == (CAT, "", [], "stop")


@pytest.mark.parametrize("text", [f"```json\n{CAT}\n```", f"{CAT}\n</think>\n", f"```\n{CAT}\n```\n</think>"])
def test_text_around_the_json_is_dropped(text):
    """A code block around it, a late end of reasoning and blank text behind it are not part of the
    content."""
    assert meaning(*thought(text), *texts("\n\n"), *END, body=body()) == (CAT, "", [], "stop")
    assert meaning(*thought(*text), *END, body=body()) == (CAT, "", [], "stop")
    prose = text.replace(CAT, "A cat.")
    assert meaning(*thought(*prose), *texts("\n"), *END, body=body())[:2] == ("\n", prose)


KEPT = {
    "not requested": ([*thought(CAT), *END], {"type": "text"}, ("", CAT)),
    "content follows": ([*thought(CAT), *texts(CAT), *END], REQUEST, (CAT, CAT)),
    "prose": ([*thought("I think of a cat."), *END], REQUEST, ("", "I think of a cat.")),
    "prose after it": ([*thought(CAT, " it is"), *END], REQUEST, ("", f"{CAT} it is")),
    "broken": ([*thought('{"label": cat'), *END], REQUEST, ("", '{"label": cat')),
    "truncated": ([*thought('{"label"'), chunk(None, "length"), DONE], REQUEST, ("", '{"label"')),
    "without a required key": ([*thought('{"x": 1}'), *END], REQUEST, ("", '{"x": 1}')),
    "a list": ([*thought("[1]"), *END], REQUEST, ("", "[1]")),
}


@pytest.mark.parametrize(("items", "request_format", "expected"), KEPT.values(), ids=KEPT)
def test_other_reasoning_stays(items, request_format, expected):
    """Any other reasoning, or reasoning followed by content, stays reasoning."""
    assert meaning(*items, body=body(request_format))[:2] == expected


def test_reasoning_before_a_call_stays():
    """JSON in the reasoning before a structured call stays reasoning."""
    items = [*thought(CAT), call(0, "a", "now", "{}"), chunk(None, "tool_calls"), DONE]
    assert meaning(*items, body={**BODY, "response_format": REQUEST}) == (
        "",
        CAT,
        [("now", "{}")],
        "tool_calls",
    )


TAILS = {
    "the end of a budget": ("First I count", " so time is up.\n</think>\n\nThe answer is 4.",
        "The answer is 4.", "First I count so time is up."),
    "a word that goes on": ("First I count.", " Time is up.\n</think>4", "4", "First I count. Time is up."),
    "a new sentence": ("First I count", "I answer now.</think>4", "4", "First I countI answer now."),
    "a tag at once": ("First I count", "</think>\n\n4", "4", "First I count"),
    "twice": ("First I count", " up\n</think>\n</think>\n4", "4", "First I count up"),
}  # fmt: skip


@pytest.mark.parametrize(("reasoning", "text", "content", "whole"), TAILS.values(), ids=TAILS)
def test_the_end_of_interrupted_reasoning_is_reasoning(reasoning, text, content, whole):
    """Text up to a late `</think>` belongs to reasoning that stopped within a sentence."""
    assert meaning(*thought(reasoning), *texts(text), *END)[:2] == (content, whole)
    assert meaning(*thought(reasoning), *texts(*text), *END)[:2] == (content, whole)


PLAIN = {
    "a finished sentence": ("I count.", "The tag </think> ends it."),
    "a line end": ("I count\n", "The tag </think> ends it."),
    "a new paragraph": ("I count", "It is 4.\n\nThe tag </think> ends it."),
    "a line end before the text": ("I count", "\n\nThe tag </think> ends it."),
    "far away": ("I count", "x" * 600 + "</think>"),
    "no tag": ("I count", " and it is 4"),
}


@pytest.mark.parametrize(("reasoning", "text"), PLAIN.values(), ids=PLAIN)
def test_text_after_reasoning_stays(reasoning, text):
    """Without the signs of an interruption, text that mentions the tag is forwarded unchanged."""
    assert meaning(*thought(reasoning), *texts(text), *END)[:2] == (text, reasoning)
    assert meaning(*thought(reasoning), *texts(*text), *END)[:2] == (text, reasoning)


@pytest.mark.parametrize("pieces", [["It is 4."], list(" and it is 4")])
def test_text_between_reasoning_keeps_its_place(pieces):
    """Text between two parts of separated reasoning is sent before the second, held or not."""
    items = [
        *thought("I count"),
        *texts(*pieces),
        *thought("I check", ""),
        *texts(" Yes, 4."),
        *END,
    ]
    passed = [type(event) for event in events([stream(*items)], decoded(BODY))]
    order = [kind for kind, _ in groupby(kind for kind in passed if kind in (TextDelta, ReasoningDelta))]
    assert order == [ReasoningDelta, TextDelta, ReasoningDelta, TextDelta]
    assert meaning(*items)[:2] == ("".join(pieces) + " Yes, 4.", "I countI check")
