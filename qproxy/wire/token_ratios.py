"""Tokens of a text by its length: a ratio per model, learned from the usage that its servers report.

This is the estimate of the hot path, for rate limits, budgets, the start of a stream, and usage that no
server reported: it reads lengths, never text. A model starts at four bytes a token, which fits English and
code; its ratio then follows what is actually sent to it.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from math import ceil

TOKENS_PER_BYTE = 0.25
TOKENS_PER_IMAGE = 1000
MIN_RATIO, MAX_RATIO = 1 / 32, 2.0
"""Tokens per byte; a report outside is not about the text that was sent."""
PRIOR_BYTES = 4000.0
"""The weight of the initial ratio, in bytes of prompts."""
MAX_WEIGHT = 100_000
"""Bytes that one report counts for at most, so that no single prompt decides."""
RETENTION = 0.98
"""Share of the earlier reports' weight that each new one leaves."""
MAX_MODELS = 256
"""Models remembered, the most recently used ones."""


@dataclass(frozen=True, slots=True)
class PromptSize:
    """The size of a prompt, which is all that an estimate needs of it."""

    text_bytes: int
    images: int = 0


@dataclass(frozen=True, slots=True)
class TokenEstimate:
    """An estimate of a request's tokens."""

    prompt: int = 0
    ratio: float = TOKENS_PER_BYTE
    """Tokens per byte of text."""

    def resized(self, size: PromptSize) -> TokenEstimate:
        """Return the estimate for another prompt of the same model."""
        text = int(size.text_bytes * self.ratio) + 1 if size.text_bytes else 0
        return TokenEstimate(size.images * TOKENS_PER_IMAGE + text, self.ratio)

    def text_tokens(self, text_bytes: int) -> int:
        """Return about how many tokens a text of this length has."""
        return ceil(text_bytes * self.ratio)


class TokenRatios:
    """The ratios of all models."""

    def __init__(self) -> None:
        self._reports: OrderedDict[str, tuple[float, float]] = OrderedDict()
        """Bytes and tokens, weighted by their age."""

    def __repr__(self) -> str:
        return f"<TokenRatios of {len(self._reports)} models>"

    def ratio(self, model: str) -> float:
        """Return a model's tokens per byte."""
        if model not in self._reports:
            return TOKENS_PER_BYTE
        text_bytes, tokens = self._reports[model]
        return tokens / text_bytes

    def estimate(self, model: str, size: PromptSize) -> TokenEstimate:
        """Return the estimate for a prompt of this size."""
        return TokenEstimate(0, self.ratio(model)).resized(size)

    def learn(self, model: str, size: PromptSize, prompt_tokens: int) -> None:
        """Adjust a model's ratio by the tokens that its server reported for a prompt of text."""
        is_text = size.text_bytes > 0 and not size.images
        if not is_text or not MIN_RATIO <= prompt_tokens / size.text_bytes <= MAX_RATIO:
            return
        before = self._reports.pop(model, (PRIOR_BYTES, PRIOR_BYTES * TOKENS_PER_BYTE))
        weight = min(1.0, MAX_WEIGHT / size.text_bytes)
        self._reports[model] = (
            before[0] * RETENTION + size.text_bytes * weight,
            before[1] * RETENTION + prompt_tokens * weight,
        )
        if len(self._reports) > MAX_MODELS:
            self._reports.popitem(last=False)
