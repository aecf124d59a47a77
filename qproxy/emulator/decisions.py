"""Decisions of the emulated Qwen: an option is as probable as its words are many in the state.

As the decision model answers them (`/systemone`), and as a chat model answers a multiple-choice
question, with log probabilities. A guard model finds the words of `UNSAFE`.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

from qproxy.bootstrap.models import package_catalog
from qproxy.emulator.errors import ApiError

OPTION = re.compile(r"^([A-Z])\. (.*)$", re.MULTILINE)
GUARD = "guard"
"""In the name of a model that judges the safety of texts."""
UNSAFE = {
    "kill": ("Unsafe", "Violent"),
    "steal": ("Unsafe", "Non-violent Illegal Acts"),
    "naked": ("Controversial", "Sexual Content or Sexual Acts"),
    "passport": ("Controversial", "PII"),
}


def _shares(text: str, options: list[str]) -> list[float]:
    """The options' probabilities, which add up to 1."""
    words = re.findall(r"\w+", text.lower())
    counts = [
        1 + 8 * sum(words.count(word) for word in set(re.findall(r"\w+", one.lower()))) for one in options
    ]
    return [round(count / sum(counts), 6) for count in counts]


def system_one(body: Any) -> dict[str, Any]:
    """The answer of the decision model."""
    if not package_catalog().get(str(body.get("model"))).is_for("decision"):
        raise ApiError(404, f"Model not exist: {body.get('model')}", "ModelNotFound")
    state = body["state"] if isinstance(body["state"], str) else json.dumps(body["state"])
    answers = {id: _answer(state, question) for id, question in body["questions"].items()}
    tokens = len(state.split())
    usage = {"input_tokens": tokens, "output_tokens": 0, "total_tokens": tokens}
    return {"model": body["model"], "answers": answers, "usage": usage, "latency_ms": 12.5}


def _answer(state: str, question: Any) -> dict[str, Any]:
    kind, criteria = question["type"], question.get("criteria")
    if kind == "noul":
        yes = _shares(state, [question.get("instructions") or "", ""])[0]
        return {"type": kind, "noul": yes, "probabilities": {"true": yes, "false": round(1 - yes, 6)}}
    if kind == "choice":
        shares = dict(zip(criteria, _shares(state, [f"{k} {v}" for k, v in criteria.items()]), strict=True))
        best = max(shares, key=shares.__getitem__)
        return {"type": kind, "choice": best, "probabilities": shares, "confidence": shares[best]}
    if kind != "score":
        raise ApiError(400, f"type {kind} is not known", "InvalidParameter")
    levels = _shares(state, criteria)
    return {
        "type": kind,
        "score": round(sum(n * share for n, share in enumerate(levels)), 6),
        "probabilities": {str(n): share for n, share in enumerate(levels)},
        "confidence": max(levels),
        "legend": {str(n): text for n, text in enumerate(criteria)},
    }


def choose(question: str) -> list[tuple[str, float]]:
    """The letters of a multiple-choice question, the most probable first; none for another text."""
    options = OPTION.findall(question)
    if not options or not question.endswith("Answer with the letter alone."):
        return []
    state, _, asked = question.rpartition("</state>")
    if [text for _, text in options] == ["true", "false"]:
        yes = _shares(state, [OPTION.sub("", asked), ""])[0]
        shares = [yes, 1 - yes]
    else:
        shares = _shares(state, [text for _, text in options])
    return sorted(zip((letter for letter, _ in options), shares, strict=True), key=lambda it: -it[1])


def judge(messages: list[Any]) -> str:
    """The answer of a guard model to a conversation's last message."""
    last = messages[-1]
    text = str(last.get("content")).lower()
    safety, category = next((found for word, found in UNSAFE.items() if word in text), ("Safe", "None"))
    lines = [f"Safety: {safety}", f"Categories: {category}"]
    if last.get("role") == "assistant":
        lines.append(f"Refusal: {'Yes' if 'cannot' in text else 'No'}")
    return "\n".join(lines)


def open_moderation(body: Any) -> dict[str, Any]:
    """The answer of an own server that has moderations."""
    flagged = any(word in str(body["input"]).lower() for word in UNSAFE)
    scores = {"violence": 0.9 if flagged else 0.1}
    result = {"flagged": flagged, "categories": {"violence": flagged}, "category_scores": scores}
    return {"id": "modr-emu", "model": body["model"], "results": [result]}


def logprobs(body: Any, question: str, text: str) -> dict[str, Any] | None:
    """The log probabilities of a text's words, if the request has asked for them."""
    if not body.get("logprobs"):
        return None
    choices = choose(question)[: body.get("top_logprobs", 0)]
    content = []
    for word in re.findall(r"(?<!\s)\s*+\S++", text):
        tops = choices or [(word, 0.8)]
        if word.strip() in ("Safe", "Unsafe", "Controversial"):
            tops = [(word, 0.8), *((f" {one}", 0.1) for one in ("Safe", "Unsafe", "Controversial"))]
            tops = list({one: (one, share) for one, share in reversed(tops)}.values())[::-1]
        entries = [_token(one, share) for one, share in tops]
        content.append({**_token(word, 0.8), **entries[0], "token": word, "top_logprobs": entries})
    return {"content": content, "refusal": None}


def _token(token: str, share: float) -> dict[str, Any]:
    return {"token": token, "logprob": math.log(share), "bytes": list(token.encode())}
