"""Embeddings of the emulated Qwen: unit vectors from a hash of each, so that equal texts are equal and
others not.

In both of DashScope's dialects, with its refusals: a batch above ten, dimensions that the model does not
have, base64, token ids. The native answer comes in reverse order, because its order is not promised.
"""

from __future__ import annotations

import hashlib
from typing import Any

from qproxy.bootstrap.models import package_catalog
from qproxy.emulator.errors import ApiError

MAX_BATCH = 10
DEFAULT_DIMENSIONS = 1024


def _bad_request(message: str) -> ApiError:
    return ApiError(400, f"<400> InternalError.Algo.InvalidParameter: {message}", "InvalidParameter")


def _validate(model: Any, texts: Any, dimensions: Any) -> list[str]:
    """The texts; raises the refusal that DashScope would answer with."""
    catalog = package_catalog()
    spec = catalog.get(str(model))
    if not catalog.knows(str(model)) or not spec.is_for("embedding") or not spec.dimensions:
        raise ApiError(
            404, f"The model `{model}` does not exist or you do not have access to it.", "model_not_found"
        )
    texts = [texts] if isinstance(texts, str) else texts
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) and text for text in texts):
        raise _bad_request("Value error, contents is neither str nor list of str.: input.contents")
    if len(texts) > MAX_BATCH:
        raise _bad_request(
            f"Value error, batch size is invalid, it should not be larger than {MAX_BATCH}.: input.contents"
        )
    if dimensions not in (None, *spec.dimensions):
        raise _bad_request(f"Value error, dimension {dimensions} is not one of {spec.dimensions}: parameters")
    return texts


def openai_response(body: Any) -> dict[str, Any]:
    """The answer of the compatible mode."""
    texts = _validate(body.get("model"), body.get("input"), body.get("dimensions"))
    if body.get("encoding_format", "float") != "float":
        raise _bad_request(
            "Value error, encoding_format only supports with [float]: parameters.encoding_format"
        )
    size, count = body.get("dimensions") or DEFAULT_DIMENSIONS, tokens(texts)
    data = [
        {"object": "embedding", "index": n, "embedding": vector(text, size)} for n, text in enumerate(texts)
    ]
    usage = {"prompt_tokens": count, "total_tokens": count}
    return {"object": "list", "data": data, "model": body["model"], "usage": usage, "id": "emu-1"}


def dashscope_response(body: Any) -> dict[str, Any]:
    """The answer of the native service."""
    parameters = body.get("parameters") or {}
    texts = _validate(body.get("model"), (body.get("input") or {}).get("texts"), parameters.get("dimension"))
    size = parameters.get("dimension") or DEFAULT_DIMENSIONS
    wanted = str(parameters.get("output_type") or "dense").split("&")
    if not {"dense", "sparse"}.issuperset(wanted):
        raise _bad_request("Value error, output_type is not one of dense, sparse, dense&sparse: parameters")
    rows: list[dict[str, Any]] = [{"text_index": n} for n in range(len(texts))]
    for row, text in zip(rows, texts, strict=True):
        row |= {"embedding": vector(text, size)} if "dense" in wanted else {}
        row |= {"sparse_embedding": sparse_vector(text)} if "sparse" in wanted else {}
    output = {"embeddings": rows[::-1]}
    return {"output": output, "usage": {"total_tokens": tokens(texts)}, "request_id": "emu-1"}


def tokens(texts: list[str]) -> int:
    return sum(len(text.split()) for text in texts)


def sparse_vector(text: str) -> list[dict[str, Any]]:
    """The text's distinct words, each with its share of all."""
    words = text.split()
    return [
        {
            "index": int.from_bytes(_hash(word, 3), "big"),
            "value": words.count(word) / len(words),
            "token": word,
        }
        for word in dict.fromkeys(words)
    ]


def vector(text: str, size: int) -> list[float]:
    """The text's vector, of length one."""
    raw = _hash(text, size * 2)
    values = [int.from_bytes(raw[n : n + 2], "big") / 32767.5 - 1 for n in range(0, size * 2, 2)]
    length = sum(value * value for value in values) ** 0.5 or 1.0
    return [value / length for value in values]


def _hash(text: str, size: int) -> bytes:
    return hashlib.shake_128(text.encode("utf-8", "surrogatepass")).digest(size)
