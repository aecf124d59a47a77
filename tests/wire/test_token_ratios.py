"""Tokens by length: the ratio of a model follows the usage that its servers report."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qproxy.wire import token_ratios
from qproxy.wire.token_ratios import PromptSize, TokenEstimate, TokenRatios
from tests.examples import examples


def test_initial_estimate():
    """A model without reports has four bytes per token, and a thousand tokens per image."""
    assert TokenRatios().estimate("m", PromptSize(400, images=2)) == TokenEstimate(2101, 0.25)
    assert TokenRatios().estimate("m", PromptSize(0)).prompt == 0
    assert TokenEstimate(ratio=0.25).text_tokens(9) == 3


@pytest.mark.parametrize("ratio", [0.19, 0.25, 1.0])
def test_reports_are_learned(ratio):
    """Twenty prompts of a ratio bring the estimate of that model within 5 %, and that of no other."""
    ratios = TokenRatios()
    for size in range(2000, 22_000, 1000):
        ratios.learn("m", PromptSize(size), round(size * ratio))
    assert ratios.estimate("m", PromptSize(10_000)).prompt == pytest.approx(10_000 * ratio, rel=0.05)
    assert ratios.ratio("other") == token_ratios.TOKENS_PER_BYTE


def test_a_change_of_language_is_followed():
    """A model that gets prompts in another language gets that language's ratio."""
    ratios = TokenRatios()
    for ratio in (0.25, 0.5):
        for _ in range(200):
            ratios.learn("m", PromptSize(5000), round(5000 * ratio))
    assert ratios.ratio("m") == pytest.approx(0.5, rel=0.05)


@pytest.mark.parametrize(
    ("size", "tokens"),
    [
        (PromptSize(4000, images=1), 9000),
        (PromptSize(4000), 0),
        (PromptSize(4000), -5),
        (PromptSize(4000), 10**12),
        (PromptSize(0), 0),
        (PromptSize(0), 100),
    ],
)
def test_unusable_reports_are_ignored(size, tokens):
    """Prompts with images, without text, or with impossible counts change no ratio."""
    ratios = TokenRatios()
    ratios.learn("m", size, tokens)
    assert ratios.ratio("m") == token_ratios.TOKENS_PER_BYTE


def test_one_prompt_has_a_bounded_weight():
    """A prompt of 10 MB counts as one of 100 kB, so that the next hundred outweigh it."""
    ratios = TokenRatios()
    ratios.learn("m", PromptSize(10**7), 10**7)
    for _ in range(100):
        ratios.learn("m", PromptSize(10_000), 2500)
    assert ratios.ratio("m") < 0.35


def test_memory_is_bounded():
    """The least recently used models are dropped."""
    ratios = TokenRatios()
    for number in range(token_ratios.MAX_MODELS + 5):
        ratios.learn(f"m{number}", PromptSize(10_000), 5000)
        ratios.learn("kept", PromptSize(10_000), 5000)
    assert len(ratios._reports) == token_ratios.MAX_MODELS
    assert ratios.ratio("m0") == token_ratios.TOKENS_PER_BYTE
    assert ratios.ratio("kept") > 0.4


@examples(200)
@given(st.lists(st.tuples(st.integers(0, 10**9), st.integers(-(10**9), 10**12)), max_size=50))
def test_any_reports(reports):
    """For any reports, a ratio stays within its bounds and an estimate is a positive number."""
    ratios = TokenRatios()
    for text_bytes, tokens in reports:
        ratios.learn("m", PromptSize(text_bytes), tokens)
    assert token_ratios.MIN_RATIO <= ratios.ratio("m") <= token_ratios.MAX_RATIO
    assert ratios.estimate("m", PromptSize(1000)).prompt > 0
