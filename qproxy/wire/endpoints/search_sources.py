"""Sources of a web search as OpenAI's `annotations`, for a client that asked with `web_search_options`.

The positions are 0: a server names its sources before the text, and marks in it are not part of the contract.
OpenAPI `ChatCompletionResponseMessage.annotations`.
"""

from __future__ import annotations

from typing import Any

from qproxy.wire.events import JSON, SearchInfo, Turn


def source_annotations(turn: Turn, event: SearchInfo) -> list[dict[str, Any]]:
    """Return the annotations of the sources found so far; none if the client did not ask for a search."""
    results: JSON = event.info.get("search_results") if "web_search_options" in turn.params else None
    if not isinstance(results, list):
        return []
    return [_citation(result) for result in results if isinstance(result, dict) and _text(result.get("url"))]


def _citation(result: dict[str, JSON]) -> dict[str, Any]:
    citation = {"start_index": 0, "end_index": 0, "title": _text(result.get("title")), "url": result["url"]}
    return {"type": "url_citation", "url_citation": citation}


def _text(value: JSON) -> str:
    return value if isinstance(value, str) else ""
