"""The response of a rerank, in the client's shape."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qproxy.wire.events import JSON
from qproxy.wire.rerank.request import RerankInput, Shape

SEARCH_UNIT = 100
"""Documents of one search unit, as Cohere bills them."""


@dataclass(frozen=True, slots=True)
class RankedDocument:
    """A document's place in the request, and its relevance from 0 to 1."""

    index: int
    score: float


@dataclass(frozen=True, slots=True)
class RerankOutput:
    """The ranks of one batch."""

    ranked: Sequence[RankedDocument]
    tokens: int


def response(request: RerankInput, ranked: Sequence[RankedDocument], tokens: int, id: str) -> JSON:
    """Return the body: the best documents first, with the client's own documents where it wants them."""
    best = sorted(ranked, key=lambda document: (-document.score, document.index))[: request.top_n]
    if request.shape is Shape.TEI:
        return [_tei_item(request, document) for document in best]
    results = [_item(request, document) for document in best]
    units = -(-len(request.documents) // SEARCH_UNIT)
    meta = {"api_version": {"version": "2"}, "billed_units": {"search_units": units}}
    if request.shape is Shape.COHERE_V2:
        return {"id": id, "results": results, "meta": meta}
    meta["api_version"] = {"version": "1"}
    return {
        "id": id,
        "object": "list",
        "model": request.model,
        "results": results,
        "meta": meta,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


def _item(request: RerankInput, document: RankedDocument) -> dict[str, JSON]:
    item: dict[str, JSON] = {"index": document.index, "relevance_score": document.score}
    if request.returns_documents:
        item["document"] = request.documents[document.index].as_object()
    return item


def _tei_item(request: RerankInput, document: RankedDocument) -> dict[str, JSON]:
    item: dict[str, JSON] = {"index": document.index, "score": document.score}
    if request.returns_documents:
        item["text"] = request.documents[document.index].value
    return item
