"""Ranks of the emulated Qwen: the share of the query's words that a document has.

In Model Studio's flat and native forms and in that of own servers, best first, with the limits of the page:
500 documents (100 for the vision model), and no flat form for others than the text model.
"""

from __future__ import annotations

from typing import Any

from qproxy.bootstrap.models import package_catalog
from qproxy.emulator.errors import ApiError
from qproxy.wire.models import ModelSpec

DOCUMENTS = 500


def _bad_request(message: str) -> ApiError:
    return ApiError(400, f"<400> InternalError.Algo.InvalidParameter: {message}", "InvalidParameter")


def score(query: str, document: str) -> float:
    """The document's relevance, from 0 to 1."""
    words = set(query.lower().split())
    return round(len(words & set(document.lower().split())) / len(words), 4) if words else 0.0


def _spec(model: Any) -> ModelSpec:
    catalog = package_catalog()
    if not catalog.knows(str(model)) or not catalog.get(str(model)).is_for("rerank"):
        raise ApiError(404, f"Model not exist: {model}", "ModelNotFound")
    return catalog.get(str(model))


def _reads_pictures(model: Any) -> bool:
    return "image" in (_spec(model).inputs or ())


def _results(model: Any, query: Any, documents: Any, top_n: Any) -> tuple[list[dict[str, Any]], int]:
    most = (_spec(model).limits or {}).get("documents", DOCUMENTS)
    if not isinstance(documents, list) or not 1 <= len(documents) <= most:
        raise _bad_request(f"documents must be an array of 1 to {most}")
    if not _reads_pictures(model) and not all(isinstance(item, str) for item in documents):
        raise _bad_request("documents must be strings")
    return _rank(query, documents, top_n)


def _rank(query: Any, documents: Any, top_n: Any) -> tuple[list[dict[str, Any]], int]:
    texts = [item if isinstance(item, str) else " ".join(map(str, item.values())) for item in documents]
    query = query if isinstance(query, str) else " ".join(map(str, query.values()))
    ranked = [{"index": n, "relevance_score": score(query, text)} for n, text in enumerate(texts)]
    ranked.sort(key=lambda item: (-item["relevance_score"], item["index"]))
    words = sum(len(text.split()) for text in texts)
    return ranked[: top_n or None], len(query.split()) * len(texts) + words


def compatible_response(body: Any) -> dict[str, Any]:
    """The answer of the flat form."""
    if _reads_pictures(body["model"]):
        raise ApiError(404, f"Model not exist: {body['model']}", "ModelNotFound")
    results, tokens = _results(body["model"], body["query"], body["documents"], body.get("top_n"))
    usage = {"total_tokens": tokens}
    return {"object": "list", "results": results, "model": body["model"], "id": "emu-1", "usage": usage}


def native_response(body: Any) -> dict[str, Any]:
    """The answer of the native service."""
    inputs, parameters = body["input"], body.get("parameters") or {}
    results, tokens = _results(body["model"], inputs["query"], inputs["documents"], parameters.get("top_n"))
    return {"output": {"results": results}, "usage": {"total_tokens": tokens}, "request_id": "emu-1"}


def open_response(body: Any) -> dict[str, Any]:
    """The answer of a server such as vLLM, which knows every model."""
    results, tokens = _rank(body["query"], body["documents"], body.get("top_n"))
    return {"id": "emu-1", "model": body["model"], "results": results, "usage": {"total_tokens": tokens}}
