"""The emulated Qwen's own `/completions`: text goes on, or fills the gap between a prefix and a suffix.

Only coder models have it, as at DashScope, and what stands before and after the gap comes in the prompt
between Qwen-coder's marker words; the field `suffix` is refused, as by DashScope and vLLM.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from qproxy.emulator.chat import CREATED, fill_in_middle, split_text
from qproxy.emulator.errors import ApiError

MAX_CHOICES = 128
_TOKEN = re.compile(r"(?=.)\s*+\S*+", re.DOTALL)


def validate(body: Any) -> None:
    """Raise the refusal that the server would answer with."""
    model = str(body.get("model"))
    if "coder" not in model:
        raise ApiError(404, f"Unsupported model `{model}` for completions.", "model_not_supported")
    if not isinstance(body.get("prompt"), str):
        raise ApiError(400, "prompt must be a string", "invalid_parameter_error")
    if not 1 <= (body.get("n") or 1) <= MAX_CHOICES:
        raise ApiError(400, f"n must be between 1 and {MAX_CHOICES}", "invalid_parameter_error")
    if "suffix" in body:
        raise ApiError(400, "suffix is not currently supported", "invalid_parameter_error")


def continuation(prompt: str) -> str:
    """Return the text after a prompt, or for its gap."""
    return fill_in_middle(prompt) or f" and so on, after {len(prompt)} characters."


def _answers(body: Any) -> Iterator[tuple[int, list[str], str]]:
    """(index, tokens, finish reason) of every choice."""
    tokens = _TOKEN.findall(continuation(body["prompt"]))
    limit = body.get("max_tokens") or len(tokens)
    for index in range(body.get("n") or 1):
        yield index, tokens[:limit], "length" if limit < len(tokens) else "stop"


def _logprobs(body: Any, tokens: list[str], offset: int) -> Any:
    if body.get("logprobs") is None:
        return None
    starts = [offset + sum(map(len, tokens[:n])) for n in range(len(tokens))]
    best = [{word: -0.5} if body["logprobs"] else {} for word in tokens]
    return {
        "tokens": tokens,
        "token_logprobs": [-0.5] * len(tokens),
        "top_logprobs": best,
        "text_offset": starts,
    }


def _envelope(body: Any) -> dict[str, Any]:
    return {
        "id": "cmpl-emulator",
        "object": "text_completion",
        "created": CREATED,
        "model": body["model"],
    }


def _usage(body: Any) -> dict[str, int]:
    prompt = len(_TOKEN.findall(body["prompt"]))
    count = sum(len(text) for _, text, _ in _answers(body))
    return {"prompt_tokens": prompt, "completion_tokens": count, "total_tokens": prompt + count}


def response(body: Any) -> dict[str, Any]:
    """The answer in one piece."""
    choices = [
        {
            "index": index,
            "text": "".join(text),
            "logprobs": _logprobs(body, text, 0),
            "finish_reason": reason,
        }
        for index, text, reason in _answers(body)
    ]
    return {**_envelope(body), "choices": choices, "usage": _usage(body)}


def chunks(body: Any, size: int = 12) -> Iterator[dict[str, Any]]:
    """The chunks of a streamed answer: a token each where probabilities are asked for."""
    for index, text, reason in _answers(body):
        offset = 0
        for piece in text if body.get("logprobs") is not None else split_text("".join(text), size):
            choice = {"index": index, "text": piece, "logprobs": _logprobs(body, [piece], offset)}
            offset += len(piece)
            yield {**_envelope(body), "choices": [{**choice, "finish_reason": None}]}
        last = {"index": index, "text": "", "logprobs": None, "finish_reason": reason}
        yield {**_envelope(body), "choices": [last]}
    if (body.get("stream_options") or {}).get("include_usage"):
        yield {**_envelope(body), "choices": [], "usage": _usage(body)}
