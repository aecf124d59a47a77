"""Embeddings of contents of the emulated Qwen: unit vectors from a hash of each content's parts.

Model Studio's service with its limits, and the request of a server such as vLLM or Jina, which knows every
model. A picture counts as a fixed number of tokens; rows come in reverse order, as those of texts.
"""

from __future__ import annotations

import json
from typing import Any

from qproxy.bootstrap.models import package_catalog
from qproxy.emulator import embeddings
from qproxy.emulator.errors import ApiError
from qproxy.wire.models import ModelSpec

IMAGE_TOKENS = 64
_KINDS = {"text", "image", "video", "multi_images"}


def _bad_request(message: str) -> ApiError:
    return ApiError(400, f"<400> InternalError.Algo.InvalidParameter: {message}", "InvalidParameter")


def native_response(body: Any) -> dict[str, Any]:
    """The answer of Model Studio's service."""
    spec = _spec(body.get("model"))
    parameters, limits = body.get("parameters") or {}, spec.limits or {}
    contents = (body.get("input") or {}).get("contents")
    if not isinstance(contents, list) or not 1 <= len(contents) <= limits.get("parts", 20):
        raise _bad_request("contents must be an array within the model's limit: input.contents")
    elements = [{"text": item} if isinstance(item, str) else item for item in contents]
    _check(elements, spec)
    size = parameters.get("dimension") or limits["default_dimension"]
    if size not in (spec.dimensions or ()):
        raise _bad_request(f"Value error, dimension {size} is not one of {spec.dimensions}: parameters")
    if parameters.get("enable_fusion"):
        if spec.fusion != "request":
            raise _bad_request("enable_fusion is not supported: parameters.enable_fusion")
        rows = [{"index": 0, "embedding": vector(elements, size), "type": "fusion"}]
    else:
        rows = [
            {"index": n, "embedding": vector([element], size), "type": _type(element)}
            for n, element in enumerate(elements)
        ]
    return {"output": {"embeddings": rows[::-1]}, "usage": _usage(elements), "request_id": "emu-1"}


def compatible_response(body: Any) -> dict[str, Any]:
    """The answer at `/embeddings`: that of an own server to contents, else that of the compatible mode."""
    inputs = body.get("input")
    contents = [body["messages"]] if "messages" in body else inputs if isinstance(inputs, list) else [inputs]
    if all(isinstance(content, str | int) for content in contents):
        return embeddings.openai_response(body)
    size = body.get("dimensions") or embeddings.DEFAULT_DIMENSIONS
    data = [
        {"object": "embedding", "index": n, "embedding": vector(content, size)}
        for n, content in enumerate(contents)
    ]
    usage = {"prompt_tokens": len(data), "total_tokens": len(data)}
    return {"object": "list", "data": data, "model": body["model"], "usage": usage, "id": "emu-1"}


def vector(content: Any, size: int) -> list[float]:
    """The vector of a content, whose JSON is hashed."""
    return embeddings.vector(json.dumps(content), size)


def _spec(model: Any) -> ModelSpec:
    catalog = package_catalog()
    if not catalog.knows(str(model)) or not catalog.get(str(model)).is_for("multimodal_embedding"):
        raise ApiError(404, f"Model not exist: {model}", "ModelNotFound")
    return catalog.get(str(model))


def _check(elements: list[Any], spec: ModelSpec) -> None:
    """Raise the refusal of elements beyond the model's limits."""
    limits = spec.limits or {}
    for element in elements:
        if not isinstance(element, dict) or not element or not element.keys() <= _KINDS:
            raise _bad_request("contents must have text, image, video or multi_images: input.contents")
        if len(element) > 1 and spec.fusion != "object":
            raise _bad_request("an element must have one key: input.contents")
    counts = {"vectors": len(elements), "images": _images(elements)}
    counts["videos"] = sum("video" in element for element in elements)
    for name, count in counts.items():
        if count > limits.get(name, count):
            raise _bad_request(f"{count} {name} are more than {limits[name]}: input.contents")


def _images(elements: list[Any]) -> int:
    return sum(("image" in element) + len(element.get("multi_images", ())) for element in elements)


def _type(element: dict[str, Any]) -> str:
    return next(iter(element)) if len(element) == 1 else "fused"


def _usage(elements: list[Any]) -> dict[str, Any]:
    text = embeddings.tokens([element.get("text", "") for element in elements])
    image = IMAGE_TOKENS * (_images(elements) + sum("video" in element for element in elements))
    details = {"text_tokens": text, "image_tokens": image}
    total = text + image
    return {
        "input_tokens": total,
        "input_tokens_details": details,
        "output_tokens": 0,
        "total_tokens": total,
    }
