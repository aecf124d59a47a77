"""The numbers of a context overflow, read from the upstream's error message.

Clients act on them: they compact the conversation or request a shorter answer. No server reports all three in
fields, so each wording is one row of `WORDINGS`.

Sources: DashScope's error reference; vLLM's `serving_engine.py` and `renderers/params.py`; SGLang's
`tokenizer_manager.py`; llama.cpp's `server.cpp` (`exceed_context_size_error`); LM Studio; OpenAI's own words.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MAX_TEXT = 2000
"""Characters of a message that are searched."""


@dataclass(frozen=True, slots=True)
class ContextOverflow:
    """The tokens that did not fit; None where the server does not report them."""

    limit: int | None = None
    """Prompt and answer together, or the prompt alone where the server limits that."""
    prompt: int | None = None
    answer: int | None = None
    """The requested maximum."""

    @property
    def prompt_fits(self) -> bool:
        """Return whether a shorter answer would fit."""
        known = self.limit is not None and self.prompt is not None and self.answer is not None
        return known and (self.prompt or 0) < (self.limit or 0)

    def completed(self, *, limit: int | None, prompt: int) -> ContextOverflow:
        """Fill in a known limit and an estimate of the prompt, which is above the limit since it did not
        fit."""
        limit = self.limit or limit
        prompt = self.prompt or (prompt if limit is None else max(prompt, limit + 1))
        return ContextOverflow(limit, prompt, self.answer)


_N = r"([0-9]{1,12})"
WORDINGS = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        # DashScope
        rf"range of input length should be \[[0-9]{{1,9}}, ?(?P<limit>{_N})\]",
        rf"message token length exceeds? model limit \((?P<limit>{_N}) tokens",
        # vLLM, newest first
        rf"passed (?P<prompt>{_N}) input tokens and requested (?P<answer>{_N}) output "
        rf"tokens.{{0,80}}?only (?P<limit>{_N})",
        rf"too large: (?P<answer>{_N})\. this model's maximum context length is (?P<limit>{_N}) tokens "
        rf"and your request has (?P<prompt>{_N})",
        rf"context length is (?P<limit>{_N}) tokens.{{0,40}}?requested {_N} tokens \((?P<prompt>{_N}) "
        rf"in the messages, (?P<answer>{_N})",
        rf"context length is (?:only )?(?P<limit>{_N}) tokens.{{0,60}}?(?:request has|"
        rf"resulted in) (?P<prompt>{_N})",
        rf"prompt \(length (?P<prompt>{_N})\).{{0,80}}? longer than the maximum model length of "
        rf"(?P<limit>{_N})",
        rf"prompt length (?P<prompt>{_N}) exceeds the max_model_len (?P<limit>{_N})",
        # SGLang
        rf"input \((?P<prompt>{_N}) tokens\) is longer than the model's context length \((?P<limit>{_N})",
        rf"context length of (?P<limit>{_N}) tokens.{{0,60}}?{_N} tokens: (?P<prompt>{_N}) tokens "
        rf"from.{{0,40}}?and (?P<answer>{_N})",
        rf"input length \((?P<prompt>{_N}) tokens\) exceeds the maximum allowed length \((?P<limit>{_N})",
        # llama.cpp, LM Studio
        rf"request \((?P<prompt>{_N}) tokens\) exceeds the available context size \((?P<limit>{_N})",
        rf"keep the first (?P<prompt>{_N}) tokens.{{0,120}}?context length of (?:only )?(?P<limit>{_N})",
        # OpenAI; any wording with the limit alone
        rf"limit of (?P<limit>{_N}) tokens.{{0,40}}?resulted in (?P<prompt>{_N})",
        rf"context length (?:is|of) (?:only )?(?P<limit>{_N})",
    )
)


def parse_overflow(text: str, fields: Mapping[str, Any] | None = None) -> ContextOverflow | None:
    """Return the numbers in an error's text or in llama.cpp's fields; None when there are none."""
    limit, prompt = (_count((fields or {}).get(name)) for name in ("n_ctx", "n_prompt_tokens"))
    if limit is not None:
        return ContextOverflow(limit, prompt)
    for wording in WORDINGS:
        match = wording.search(text[:MAX_TEXT])
        if match is not None:
            found = match.groupdict()
            return ContextOverflow(*(int(found[name]) if found.get(name) else None for name in _NAMES))
    return None


_NAMES = ("limit", "prompt", "answer")


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
