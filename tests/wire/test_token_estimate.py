"""Token counts without a vocabulary: their accuracy for both of Qwen's, their coverage, and their cost."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qproxy.bootstrap.models import package_catalog
from qproxy.wire import token_estimate
from qproxy.wire.endpoints import anthropic
from qproxy.wire.token_estimate import QWEN2, QWEN3_5, TokenCounter, count_text, vocabulary_of
from tests.defaults import DECODE_LIMITS
from tests.examples import examples

CORPUS = Path(__file__).parent / "token_corpus"
COUNTS = json.loads((CORPUS / "counts.json").read_text())
"""The exact counts of each text, by a model of each vocabulary (`scripts/token_estimate.py`)."""
NEAR = {"german": 0.25}
"""Texts for which the estimate may deviate by more than 15 %: a vocabulary splits words of rare languages
into more tokens."""
CATALOG = package_catalog()
CASES = [(name, model, count) for name, counts in COUNTS.items() for model, count in counts.items()]


def test_the_corpus_is_complete():
    """Every text has its counts, and the required texts exist."""
    assert set(COUNTS) == {path.stem for path in CORPUS.glob("*.txt")}
    assert set(COUNTS) >= {"english", "chinese", "russian", "code", "json_numbers"}


@pytest.mark.parametrize(
    ("name", "model", "count"), CASES, ids=[f"{name}-{model}" for name, model, _ in CASES]
)
def test_accuracy(name, model, count):
    """The estimate is within 15 % of the exact count, for both vocabularies."""
    estimate = count_text((CORPUS / f"{name}.txt").read_text(), vocabulary_of(CATALOG.get(model)))
    assert abs(estimate / count - 1) <= NEAR.get(name, 0.15)


@pytest.mark.parametrize(
    "model",
    [
        "qwen2.5-72b-instruct",
        "qwen3-max",
        "Qwen/Qwen3-32B",
        "qwen3",
        "qwen-plus",
        "qwen-turbo-latest",
        "qwq-plus",
        "qwen3-coder-plus",
        "qwen3-vl-plus",
        "qwen1.5-7b",
    ],
)
def test_older_models(model):
    """Models before Qwen 3.5 have the older vocabulary."""
    assert vocabulary_of(CATALOG.get(model)) is QWEN2


@pytest.mark.parametrize(
    "model",
    [
        "qwen3.5-plus",
        "qwen3.6-27b",
        "qwen3.8-max",
        "qwen3.10-max",
        "qwen4-max",
        "qwen4.1-flash",
        "qwen10",
        "claude-opus-4-8",
        "",
        "deepseek-v4",
    ],
)
def test_newer_models(model):
    """Qwen 3.5 and later, and unknown models, have the newer vocabulary."""
    assert vocabulary_of(CATALOG.get(model)) is QWEN3_5


EXACT = {"": 0, "a": 1, "hello": 1, "12345": 5, "hello world": 2, "a\n": 2, "1 2 3": 5, "\n\n\n": 1}


@pytest.mark.parametrize(("text", "count"), EXACT.items())
def test_exact_counts(text, count):
    """Deterministic parts are counted exactly: digits, short words, line ends, a blank before a digit."""
    assert count_text(text) == count_text(text, QWEN2) == count


def test_long_texts_are_sampled():
    """A text of megabytes costs no more than a small one, and its estimate is as accurate."""
    text = (CORPUS / "english.txt").read_text() + (CORPUS / "code.txt").read_text()
    for factor in (20, 400):
        assert abs(count_text(text * factor) / (count_text(text) * factor) - 1) < 0.05


@given(st.text(max_size=40), st.text(max_size=40))
@examples(200)
def test_any_text(before, after):
    """Any text has a count of at least zero, about the sum of its halves."""
    for vocabulary in (QWEN2, QWEN3_5):
        both = count_text(before + after, vocabulary)
        assert 0 <= both <= count_text(before, vocabulary) + count_text(after, vocabulary) + 3


@pytest.mark.parametrize(
    "text",
    [" " * 50_000, "\t \n" * 20_000, "a" * 60_000, "A" * 60_000, "{" * 60_000, "é" * 60_000, "\x00" * 60_000],
)
def test_adversarial_texts(text):
    """Runs of anything are one match, at any length: no text makes the pattern backtrack."""
    assert count_text(text) >= 1
    runs = sum(1 for _ in token_estimate._RUNS.finditer(text))
    assert runs <= len(text)


def counted(body):
    """Return the count of a request's prompt."""
    return sum(TokenCounter().count_prompt(anthropic.decode_count({"model": "m", **body}, **DECODE_LIMITS)))


def test_every_part_counts():
    """System prompt, texts, reasoning, calls, results, images and tools each add to the count."""
    words = "one two three four five six seven eight nine ten " * 10
    body = {"messages": [{"role": "user", "content": "hi"}]}
    least = counted(body)
    text = {"type": "text", "text": words}
    use = {"type": "tool_use", "id": "t", "name": "f", "input": {"x": words}}
    parts = {
        "system": {**body, "system": words},
        "text": {"messages": [{"role": "user", "content": [text]}]},
        "thought": {
            "messages": [
                *body["messages"],
                {"role": "assistant", "content": [{"type": "thinking", "thinking": words, "signature": "s"}]},
            ]
        },
        "call": {"messages": [*body["messages"], {"role": "assistant", "content": [use]}]},
        "result": {
            "messages": [
                {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": [text]}]}
            ]
        },
        "tools": {**body, "tools": [{"name": "f", "description": words, "input_schema": {"type": "object"}}]},
    }
    for name, part in parts.items():
        assert 95 <= counted(part) - least + 5 <= 145, name
    picture = {"type": "image", "source": {"type": "url", "url": "https://x/y.png"}}
    assert counted({"messages": [{"role": "user", "content": [picture]}]}) >= 1000
    assert 1 <= least <= 10


def test_counts_are_cached():
    """A text is looked up by its digest; the oldest entries are dropped, and no text is stored."""
    counter = TokenCounter()
    text = "word " * 100
    assert counter.count(text) == counter.count("word " * 100) == count_text(text)
    assert len(counter._counts) == 1
    for number in range(token_estimate.MAX_CACHED_TEXTS + 10):
        counter.count(f"{number} " + "x" * token_estimate.MIN_CACHED_CHARACTERS)
    assert len(counter._counts) == token_estimate.MAX_CACHED_TEXTS
    assert all(len(key) == 16 for key in counter._counts)
    assert counter.count("short") == 1
    assert len(counter._counts) == token_estimate.MAX_CACHED_TEXTS
