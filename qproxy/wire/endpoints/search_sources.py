"""The results of a web search as OpenAI's annotations, `url_citation`s with the characters that cite them.

They are known at the end of a text, and stand where OpenAI has them: before the end of its message. OpenAPI
`UrlCitationBody` (Responses), `ChatCompletionResponseMessage.annotations`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qproxy.wire.events import SearchInfo, Turn
from qproxy.wire.search_results import SearchResult, find_citations, parse_results


def requested_results(turn: Turn, event: SearchInfo) -> list[SearchResult]:
    """Return the results found so far; none if a chat client did not ask for a search."""
    return parse_results(event.info) if "web_search_options" in turn.params else []


def url_citations(text: str, results: Sequence[SearchResult]) -> list[dict[str, Any]]:
    """Return the annotations of a text in the Responses API's shape."""
    return [
        {
            "type": "url_citation",
            "start_index": found.start,
            "end_index": found.end,
            "title": found.result.title,
            "url": found.result.url,
        }
        for found in find_citations(text, results)
    ]


def chat_annotations(text: str, results: Sequence[SearchResult]) -> list[dict[str, Any]]:
    """Return the annotations of a text in chat's shape, which nests them."""
    return [{"type": cited.pop("type"), "url_citation": cited} for cited in url_citations(text, results)]
