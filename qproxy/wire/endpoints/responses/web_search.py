"""Web search in the Responses API: the tool that a client declares, and the item that shows the search.

Qwen searches by itself, before it answers, and reports what it found: the item stands before the message. A
tool of the operator that searches is called by the model: the item is open while it runs. Either way the
query is shown if it is known, and the results with `include: ["web_search_call.action.sources"]`.

OpenAPI `WebSearchTool`, `WebSearchPreviewTool`, `WebSearchToolCall`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from qproxy.wire import json_codec
from qproxy.wire.endpoints import validation
from qproxy.wire.endpoints.responses.item_event import ItemEvent
from qproxy.wire.events import JSON, Event, ServerToolCall, ServerToolResult
from qproxy.wire.search_results import SearchResult

TYPES = (
    "web_search", "web_search_2025_08_26", "web_search_preview", "web_search_preview_2025_03_11",
)  # fmt: skip
ECHOED = ("filters", "search_context_size", "user_location")
"""Keys that a response repeats."""
_UNSUPPORTED = ("filters", "user_location")
"""Keys that no Qwen server reads."""
_QUERIES = ("query", "q", "search_query", "keywords", "question", "text")
"""Where a tool that searches expects the query."""


@dataclass(frozen=True, slots=True)
class WebSearch:
    """The web search that a request declares."""

    path: str
    """Its path in the request (`tools[2]`)."""
    options: dict[str, JSON]
    """Chat's `web_search_options`."""
    ignored: tuple[str, ...]
    """Paths of what is left out of it."""


def parse_web_search(entries: Sequence[JSON]) -> WebSearch | None:
    """Return the web search among some tools.  Raises RequestError naming an invalid field.

    One without `external_web_access` may only use a cache of pages, which no server has: it is no search.
    """
    for number, entry in enumerate(entries):
        if not is_web_search(entry) or entry.get("external_web_access") is False:
            continue
        path, size = f"tools[{number}]", entry.get("search_context_size")
        if size is not None:
            validation.one_of(("low", "medium", "high"))(size, f"{path}.search_context_size")
        ignored = tuple(f"{path}.{name}" for name in _UNSUPPORTED if entry.get(name))
        return WebSearch(path, {} if size is None else {"search_context_size": size}, ignored)
    return None


def is_web_search(entry: JSON) -> bool:
    """Return whether a tool, or the choice of one, is OpenAI's web search."""
    return isinstance(entry, dict) and entry.get("type") in TYPES


class WebSearchItem:
    """A search by the upstream, or a `call` of a server tool that searches."""

    def __init__(
        self, id: str, index: int, call: ServerToolCall | None, results: list[SearchResult] | None
    ) -> None:
        """`results` is the list of what was found, which may grow; None if the client does not want it."""
        self._index = {"item_id": id, "output_index": index}
        self._call = call
        self._results = results
        self._is_complete = False
        self._failed = False

    def accepts(self, event: Event) -> bool:
        return isinstance(event, ServerToolResult) and self._call is not None and event.id == self._call.id

    def add_complete(self) -> bool:
        return self._is_complete

    def add(self, event: Any) -> list[ItemEvent]:
        if isinstance(event, ServerToolResult):
            self._is_complete, self._failed = True, not event.ok
            return [self._event("completed")]
        self._is_complete = self._call is None
        started = [self._event("in_progress"), self._event("searching")]
        return [*started, self._event("completed")] if self._is_complete else started

    def close(self) -> list[ItemEvent]:
        return []

    def _event(self, what: str) -> ItemEvent:
        return f"response.web_search_call.{what}", dict(self._index)

    def item(self, status: str) -> JSON:
        action: dict[str, JSON] = {"type": "search"}
        if (query := _query(self._call)) is not None:
            action |= {"query": query, "queries": [query]}
        if self._results is not None and self._is_complete:
            action["sources"] = [{"type": "url", "url": result.url} for result in self._results]
        return {
            "id": self._index["item_id"],
            "type": "web_search_call",
            "status": "failed" if self._failed else status,
            "action": action,
        }


def _query(call: ServerToolCall | None) -> str | None:
    """Return the query among the arguments of a call."""
    if call is None:
        return None
    try:
        arguments = json_codec.loads(call.arguments)
    except ValueError:
        return None
    if not isinstance(arguments, dict):
        return None
    return next((arguments[name] for name in _QUERIES if isinstance(arguments.get(name), str)), None)
