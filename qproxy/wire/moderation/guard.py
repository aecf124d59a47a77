"""Qwen3Guard: a chat model whose answer to a conversation is its judgement, in lines.

    Safety: Safe | Unsafe | Controversial
    Categories: Violent, PII, ... | None
    Refusal: Yes | No          (only for answers of a model)

Source: the model cards of Qwen3Guard-Gen. Its categories are wider than OpenAI's subcategories (`hate`, not
`hate/threatening`), and some have no counterpart there: those flag the input and are named in the result.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from qproxy.wire.errors import UpstreamError
from qproxy.wire.events import JSON, Event, TextDelta, Turn
from qproxy.wire.moderation.response import Judgement

SCORES = {"safe": 0.0, "controversial": 0.5, "unsafe": 1.0}
CATEGORIES = {
    "violent": ("violence",),
    "non-violent illegal acts": ("illicit",),
    "sexual content or sexual acts": ("sexual",),
    "suicide & self-harm": ("self-harm",),
    "unethical acts": ("hate", "harassment"),
    "pii": (),
    "politically sensitive topics": (),
    "copyright violation": (),
    "jailbreak": (),
}
"""The model's categories, and OpenAI's for them."""
TELLS = tuple(name for names in CATEGORIES.values() for name in names)
PARAMS: dict[str, JSON] = {"logprobs": True, "top_logprobs": 20, "max_tokens": 64, "temperature": 0}
"""Those of every request; the rules of a server may lower or drop them."""


def turn(model: str, text: str, *, id: str, created: int) -> Turn:
    """Return the request for the judgement of a text."""
    messages = [{"role": "user", "content": text}]
    return Turn(id, created, model, messages, params=dict(PARAMS), store=False)


def judgement(events: Sequence[Event], *, flags_controversial: bool) -> Judgement:
    """Return the judgement in a response. Raises UpstreamError for one without a known word of safety."""
    deltas = [event for event in events if isinstance(event, TextDelta)]
    lines = dict(_lines("".join(delta.text for delta in deltas)))
    safety = lines.get("safety", "")
    if safety.lower() not in SCORES:
        message = "The guard model returned no judgement of safety."
        raise UpstreamError(message, code="upstream_invalid_response")
    found = [name for part in lines.get("categories", "").split(",") if (name := part.strip())]
    found = [name for name in found if name.lower() != "none"]
    measured = _score_of_tokens(deltas)
    score = SCORES[safety.lower()] if measured is None else measured
    scores = dict.fromkeys(TELLS, 0.0)
    for name in found:
        scores |= dict.fromkeys(CATEGORIES.get(name.lower(), ()), score)
    flagged = safety.lower() == "unsafe" or (safety.lower() == "controversial" and flags_controversial)
    details: dict[str, JSON] = {"safety": safety, "categories": found, "score": score}
    if "refusal" in lines:
        details["refusal"] = lines["refusal"]
    return Judgement(flagged, scores, details)


def _lines(text: str) -> list[tuple[str, str]]:
    """Return the named lines of an answer."""
    parts = (line.partition(":") for line in text.split("\n"))
    return [(name.strip().lower(), value.strip()) for name, found, value in parts if found]


def _score_of_tokens(deltas: Sequence[TextDelta]) -> float | None:
    """Return the mean of the words' scores, weighted by the probabilities of their first tokens; None where
    the server gives none."""
    contents = [delta.logprobs.get("content") or [] for delta in deltas if isinstance(delta.logprobs, dict)]
    written = ""
    for token in (token for content in contents for token in content if isinstance(token, dict)):
        text = str(token.get("token"))
        if written.rstrip().lower().endswith("safety:") and text.strip():
            return _expected(token)
        written += text
        _, found, value = written.rpartition(":")
        if found and value.strip() and written.lower().lstrip().startswith("safety:"):
            return _expected(token)  # ": Safe" as one token
    return None


def _expected(token: dict[str, JSON]) -> float | None:
    shares: dict[str, float] = {}
    for entry in token.get("top_logprobs") or []:
        begun = str(entry.get("token")).strip(" :\n").lower()
        word = next((word for word in SCORES if begun and word.startswith(begun)), None)
        logprob = entry.get("logprob")
        if word is not None and isinstance(logprob, int | float) and not isinstance(logprob, bool):
            shares[word] = shares.get(word, 0.0) + math.exp(min(0.0, logprob))
    total = sum(shares.values())
    return sum(SCORES[word] * share for word, share in shares.items()) / total if total else None
