"""Requests for ranks to upstreams, and their responses.

    Model Studio   `POST /compatible-api/v1/reranks`, flat, for its text models named `qwen*-rerank`;
                   `POST /api/v1/services/rerank/text-rerank/text-rerank` for all others
    own servers    `POST {base}/rerank` (vLLM, llama.cpp; Jina's shape)

Documents are never asked for: the client's own are at hand. Source: Model Studio's text-rerank page.
"""

from __future__ import annotations

from qproxy.wire import json_codec
from qproxy.wire.dialects import UpstreamTarget, dashscope
from qproxy.wire.dialects.deltas import parse_usage
from qproxy.wire.errors import UpstreamError
from qproxy.wire.events import JSON
from qproxy.wire.http_request import HTTPRequest
from qproxy.wire.rerank.request import Document, RerankInput
from qproxy.wire.rerank.response import RankedDocument, RerankOutput

COMPATIBLE = "/compatible-api/v1/reranks"
NATIVE = "/api/v1/services/rerank/text-rerank/text-rerank"
_ACCEPT = (b"accept", b"application/json")


def upstream_request(request: RerankInput, target: UpstreamTarget) -> HTTPRequest:
    """Return the request for one batch."""
    if target.family != "dashscope":
        return _post(f"{target.base_url}/rerank", _open_body(request, target), target)
    root = dashscope.api_root(target.base_url)
    if is_compatible(target.model) and not request.has_media:
        body: dict[str, JSON] = {
            "model": target.model,
            "query": request.query.value,
            "documents": [document.value for document in request.documents],
        }
        if request.instruction is not None:
            body["instruct"] = request.instruction
        return _post(root + COMPATIBLE, body, target)
    parameters: dict[str, JSON] = {"return_documents": False}
    if request.instruction is not None:
        parameters["instruct"] = request.instruction
    inputs = {"query": _plain(request.query), "documents": [_plain(item) for item in request.documents]}
    return _post(root + NATIVE, {"model": target.model, "input": inputs, "parameters": parameters}, target)


def is_compatible(model: str) -> bool:
    """Return whether Model Studio serves a model in the flat form."""
    return model.startswith("qwen") and "-vl-" not in model


def _open_body(request: RerankInput, target: UpstreamTarget) -> dict[str, JSON]:
    body: dict[str, JSON] = {
        **request.params,
        "model": target.model,
        "query": _plain(request.query),
        "documents": [_plain(document) for document in request.documents],
    }
    if request.instruction is not None:
        body["instruction"] = request.instruction
    return body


def _plain(document: Document) -> JSON:
    return document.value if document.kind == "text" else document.as_object()


def _post(url: str, body: JSON, target: UpstreamTarget) -> HTTPRequest:
    return HTTPRequest("POST", url, target.with_authorization(_ACCEPT), json_codec.dumps(body))


def parse_response(data: dict[str, JSON], count: int) -> RerankOutput:
    """Return the ranks in a response of either service, or of an own server. Raises UpstreamError unless
    there is one for each of the `count` documents."""
    output = data.get("output")
    results = (output if isinstance(output, dict) else data).get("results")
    ranked = [_ranked(item) for item in results] if isinstance(results, list) else []
    if sorted(document.index for document in ranked) != list(range(count)):
        message = f"The upstream returned ranks of {len(ranked)} documents instead of all {count}."
        raise UpstreamError(message, code="upstream_invalid_response")
    usage = data.get("usage")
    counted = parse_usage(usage if isinstance(usage, dict) else {})
    return RerankOutput(ranked, counted.total_tokens or counted.prompt_tokens)


def _ranked(item: JSON) -> RankedDocument:
    index = item.get("index") if isinstance(item, dict) else None
    score = item.get("relevance_score", item.get("score")) if isinstance(item, dict) else None
    if type(index) is not int or isinstance(score, bool) or not isinstance(score, int | float):
        raise UpstreamError("The upstream returned a rank without a score.", code="upstream_invalid_response")
    return RankedDocument(index, float(score))
