"""Results of web searches are read from servers and tools, and found in the text that cites them."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qproxy.wire.search_results import find_citations, parse_results, results_of_output

A, B = (
    {"index": 1, "title": "A", "url": "https://a.test/x"},
    {"index": 2, "title": "B", "url": "https://b.test"},
)
RESULTS = parse_results({"search_results": [A, B]})

TEXTS = {
    "a mark": ("Yes [ref_2].", [("[ref_2]", "B")]),
    "two marks": ("[ref_1][ref_2]", [("[ref_1]", "A"), ("[ref_2]", "B")]),
    "a mark of another": ("See [ref_9] and [ref_1]", [("[ref_1]", "A")]),
    "a URL": ("See https://b.test.", [("https://b.test", "B")]),
    "a link": ("As [they say](https://a.test/x), so", [("[they say](https://a.test/x)", "A")]),
    "beyond the BMP": ("🦜🦜 [ref_1]", [("[ref_1]", "A")]),
    "a longer URL": ("https://b.test/other", [("https://b.test/other", "A"), ("https://b.test/other", "B")]),
    "nothing": ("Yes.", [("Yes.", "A"), ("Yes.", "B")]),
    "no text": ("", []),
}


@pytest.mark.parametrize(("text", "expected"), TEXTS.values(), ids=TEXTS)
def test_citations(text, expected):
    """A citation has the characters that name a result; a text that names none is one itself."""
    found = find_citations(text, RESULTS)
    assert [(text[cited.start : cited.end], cited.result.title) for cited in found] == expected


@given(st.text(alphabet="[]()ref_12 https://a.test/xb\n", max_size=60))
def test_citations_are_within_the_text(text):
    """Whatever a model writes, citations are in order, within the text, and of known results."""
    found = find_citations(text, RESULTS)
    assert all(0 <= cited.start < cited.end <= len(text) for cited in found)
    assert [cited.start for cited in found] == sorted(cited.start for cited in found)
    assert find_citations(text, []) == []


OUTPUTS = {
    "DashScope's": {"search_results": [A]},
    "a list": [{"link": A["url"], "title": "A"}],
    "an object in an object": {"web": None, "webPages": {"value": [{"url": A["url"], "name": "A"}]}},
    "with others": {"results": [None, 5, {"title": "no URL"}, {"href": A["url"], "title": "A"}]},
}


@pytest.mark.parametrize("output", OUTPUTS.values(), ids=OUTPUTS)
def test_outputs(output):
    """The results of a tool are found in the shapes of search engines."""
    found = parse_results(results_of_output(json.dumps(output)))
    assert [(result.url, result.title) for result in found] == [(A["url"], "A")]


def test_outputs_of_text():
    """The results of a tool that writes text are its URLs, each once."""
    text = f"1. A: {A['url']}\n2. [B]({B['url']}), and {A['url']}."
    assert [result.url for result in parse_results(results_of_output(text))] == [A["url"], B["url"]]


@pytest.mark.parametrize(
    "info", [None, [], {}, {"search_results": "x"}, {"search_results": [None, {"url": 5}]}]
)
def test_other_values_are_no_results(info):
    """What is no list of results has none."""
    assert parse_results(info) == []


@pytest.mark.parametrize(
    "output", ["", "null", "5", "{}", '{"results": {"results": {"results": []}}}', "no link"]
)
def test_other_outputs_have_no_results(output):
    """An output without results has none."""
    assert results_of_output(output) == {"search_results": []}


def test_results_are_bounded():
    """A list of any length becomes a hundred results."""
    many = [{"url": f"https://{number}.test"} for number in range(1000)]
    assert len(parse_results({"search_results": many})) == 100
    assert len(results_of_output(json.dumps(many))["search_results"]) == 100
