"""Token counts of Qwen models without their vocabularies.

`TokenCounter` reads every character. It splits a text as Qwen's tokenizer does before it merges bytes (runs
of letters, single digits, punctuation, line ends), and gives each class of run a weight that was fitted to
the vocabulary. It is within 15 % of both vocabularies on English, Chinese, Russian, source code and JSON
(`scripts/token_estimate.py`), takes about 15 ms for a prompt of 77 kB, and caches counts by digest, since a
conversation repeats itself. It includes what a chat template adds to each message and tool.

`prompt_size` reads lengths only, for the estimates of every request (`token_ratios`).
"""

from __future__ import annotations

import hashlib
import re
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from qproxy.wire import json_codec
from qproxy.wire.events import JSON, Turn
from qproxy.wire.models import ModelSpec
from qproxy.wire.token_ratios import TOKENS_PER_IMAGE, PromptSize

TOKENS_PER_MESSAGE = 4
"""`<|im_start|>`, the role, `<|im_end|>` and a line end."""
TOKENS_PER_TOOL = 8
MAX_CHARACTERS = 65_536
"""A longer text is sampled: `SAMPLES` slices of this size together, so that one text takes at most some 15
ms."""
SAMPLES = 64
MIN_CACHED_CHARACTERS = 256
"""Characters; a shorter text is counted as fast as it is looked up."""
MAX_CACHED_TEXTS = 4096
"""Texts, by a digest of 16 bytes; the text itself is not kept."""


@dataclass(frozen=True, slots=True)
class RunWeight:
    """The tokens of one run of characters: `base`, and `rate` for each character beyond `free`."""

    base: float
    free: float
    rate: float


# The classes of runs, in the order of the pattern's groups.
CLASSES = (
    ("latin", r"[A-ZÀ-ÖØ-Þ]++[a-zà-öø-ÿ]*+|[a-zà-öø-ÿ]++"),  # camelCase is two
    ("digit", r"[0-9]++"),  # each is a token
    ("punctuation", r"[!-/:-@\[-`{-~]++"),
    ("newline", r"\n(?:[^\S\n]*+\n)*+"),
    (
        "blank",
        r"[^\S\n]{2,}+|[ \t](?=[0-9])",
    ),  # one blank belongs to the word that follows, but not to a digit
    ("han", r"[\u3400-\u9fff\uf900-\ufaff]++"),
    ("kana", r"[\u3040-\u30ff]++"),
    ("hangul", r"[\uac00-\ud7af]++"),
    ("cyrillic", r"[\u0400-\u052f]++"),
    ("letter", r"[^\W\d_]++"),
    ("other", r"\S"),
)
_RUNS = re.compile("|".join(f"({pattern})" for _, pattern in CLASSES))

Vocabulary = tuple[RunWeight, ...]
"""The weights of the classes, in their order."""

_WORD, _FREE = RunWeight(1, 7, 0), RunWeight(1, 0, 0)
_DIGIT = RunWeight(0, 0, 1)


def _vocabulary(latin: float, punctuation: tuple[float, float], *rates: float) -> Vocabulary:
    """Return weights for letters beyond a word's seventh, punctuation, and a character of each other
    script."""
    return (
        RunWeight(1, 7, latin),
        _DIGIT,
        RunWeight(punctuation[0], 2.5, punctuation[1]),
        _FREE,
        _FREE,
        *(RunWeight(0, 0, rate) for rate in rates),
    )


#                                             han    kana  hangul cyrillic letter other
QWEN2 = _vocabulary(0.54, (0.66, 0.27), 0.639, 0.677, 0.886, 0.384, 0.42, 0.87)
"""151k entries: Qwen 1.5 to 3."""
QWEN3_5 = _vocabulary(0.35, (0.81, 0.30), 0.557, 0.558, 0.663, 0.275, 0.33, 0.82)
"""248k entries: Qwen 3.5 and later, as of December 2026."""
VOCABULARIES = {"151k": QWEN2, "248k": QWEN3_5}
"""By their names in the catalog of models."""


def vocabulary_of(spec: ModelSpec) -> Vocabulary:
    """Return the vocabulary of a model; one that is not known to have an older one has the newest."""
    return VOCABULARIES[spec.vocabulary or "248k"]


def count_text(text: str, vocabulary: Vocabulary = QWEN3_5) -> int:
    """Return about how many tokens a text has."""
    if len(text) <= MAX_CHARACTERS:
        return round(_count(text, vocabulary))
    size = MAX_CHARACTERS // SAMPLES
    starts = [number * (len(text) - size) // (SAMPLES - 1) for number in range(SAMPLES)]
    counted = sum(_count(text[start : start + size], vocabulary) for start in starts)
    return round(counted * len(text) / (size * SAMPLES))


def _count(text: str, vocabulary: Vocabulary) -> float:
    total = 0.0
    for match in _RUNS.finditer(text):
        weight = vocabulary[(match.lastindex or 1) - 1]
        beyond = match.end() - match.start() - weight.free
        total += weight.base + (beyond * weight.rate if beyond > 0 else 0)
    return total


class TokenCounter:
    """A counter for one vocabulary, with a cache of long texts."""

    def __init__(self, vocabulary: Vocabulary = QWEN3_5) -> None:
        self._vocabulary = vocabulary
        self._counts: OrderedDict[bytes, int] = OrderedDict()

    def count(self, text: str) -> int:
        """Return about how many tokens a text has."""
        if len(text) < MIN_CACHED_CHARACTERS:
            return count_text(text, self._vocabulary)
        key = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        count = self._counts.pop(key, None)
        if count is None:
            count = count_text(text, self._vocabulary)
        self._counts[key] = count
        if len(self._counts) > MAX_CACHED_TEXTS:
            self._counts.popitem(last=False)
        return count

    def count_prompt(self, turn: Turn) -> Iterator[int]:
        """Yield the tokens of a prompt, text by text, so that a server can checkpoint in between."""
        for message in turn.messages:
            yield TOKENS_PER_MESSAGE
            for text in message_texts(message):
                yield TOKENS_PER_IMAGE if text is None else self.count(text)
        for tool in turn.tools:
            yield TOKENS_PER_TOOL + self.count(json_codec.dumps_spaced(tool))


def message_texts(message: JSON) -> Iterator[str | None]:
    """Yield the texts of a message, and None for each part that is not text."""
    content = message.get("content")
    if isinstance(content, str):
        yield content
    elif isinstance(content, list):
        for part in content:
            text = part.get("text") if isinstance(part, dict) else part
            yield text if isinstance(text, str) else None
    if isinstance(reasoning := message.get("reasoning_content"), str):
        yield reasoning
    calls = message.get("tool_calls")
    for call in calls if isinstance(calls, list) else ():
        function = call.get("function") if isinstance(call, dict) else None
        if isinstance(function, dict):
            yield str(function.get("name") or "")
            yield str(function.get("arguments") or "")


def prompt_size(turn: Turn) -> PromptSize:
    """Return the size of a turn's prompt: its texts, its tools as JSON, and its images or other media."""
    size, images = _tools_bytes(turn), 0
    for message in turn.messages:
        for text in message_texts(message) if isinstance(message, dict) else ():
            if text is None:
                images += 1
            else:
                size += text_bytes(text)
    return PromptSize(size, images)


def text_bytes(text: str) -> int:
    """Return the length of a text in UTF-8."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def _tools_bytes(turn: Turn) -> int:
    tools: Sequence[JSON] = turn.tools
    if turn.tools_bytes is not None or not tools:
        return turn.tools_bytes or 0
    text = None if turn.raw_fields is None else turn.raw_fields.text(tools)
    return len(json_codec.dumps(list(tools)) if text is None else text)
