"""The output items of a response, in order, as its events extend them.

One item is open at a time, and it is closed before the next one opens: clients act on `output_item.done`. So
a call is finished before anything else begins; if a server interleaves two calls, events of the other one
wait. A truncated item is `incomplete`.

OpenAPI `OutputItem`, `ResponseOutputItemAddedEvent`, `ResponseOutputItemDoneEvent`.
"""

from __future__ import annotations

from typing import Protocol

from qproxy.wire.endpoints.responses.approvals import REQUEST as APPROVAL
from qproxy.wire.endpoints.responses.item_event import ItemEvent
from qproxy.wire.endpoints.responses.mcp_items import ApprovalRequestItem, McpListToolsItem
from qproxy.wire.endpoints.responses.objects import output_id
from qproxy.wire.endpoints.responses.output_items import (
    CompactionItem,
    FunctionCallItem,
    McpCallItem,
    MessageItem,
    ReasoningItem,
)
from qproxy.wire.endpoints.responses.request import ResponsesRequest
from qproxy.wire.endpoints.responses.web_search import WebSearchItem
from qproxy.wire.events import (
    JSON,
    ApprovalRequest,
    CompactionDelta,
    CompactionDone,
    EncryptedReasoning,
    Event,
    ReasoningDelta,
    SearchInfo,
    ServerToolCall,
    ServerToolList,
    ServerToolResult,
    TextDelta,
    ToolCallArgumentsDelta,
    ToolCallStart,
)
from qproxy.wire.search_results import SearchResult, parse_results


class _OutputItem(Protocol):
    """An open output item."""

    def accepts(self, event: Event) -> bool: ...

    def add_complete(self) -> bool:
        """Return whether another item may start now."""
        ...

    def add(self, event: Event) -> list[ItemEvent]: ...

    def close(self) -> list[ItemEvent]: ...

    def item(self, status: str) -> JSON: ...


class ResponseOutput:
    """The output items of one response."""

    def __init__(self, response: str, request: ResponsesRequest) -> None:
        self.items: list[JSON] = []
        """The closed items."""
        self._response = response
        self._asked = request
        self._open: _OutputItem | None = None
        self._pending: list[Event] = []
        self._results: list[SearchResult] = []
        """What the web searches found so far."""
        self._has_searched = False

    def feed(self, event: Event) -> list[ItemEvent]:
        """Return the stream events of an event."""
        if isinstance(event, SearchInfo) and not self._add_results(event):
            return []
        current = self._open
        if current is not None and current.accepts(event):
            out = current.add(event)
            return [*out, *self._add_to_open()] if self._pending and current.add_complete() else out
        if current is not None and not current.add_complete():
            self._pending.append(event)
            return []
        if isinstance(event, ToolCallArgumentsDelta | ServerToolResult):
            return []  # blanks after a complete call
        return [*self._close(), *self._open_item(event)]

    def end(self, *, cut: bool) -> list[ItemEvent]:
        """Close the open item; an empty response that is not truncated (`cut`) gets one empty message."""
        out: list[ItemEvent] = []
        while self._pending:
            out += self._add_to_open()
        follows_text = self._open is not None and not isinstance(self._open, ReasoningItem)
        if not cut and not follows_text and all(item["type"] == "reasoning" for item in self.items):
            out += [*self._close(), *self._open_item(TextDelta(""))]
        return [*out, *self._close("incomplete" if cut else "completed")]

    def _add_results(self, event: SearchInfo) -> bool:
        """Remember what a search found; return whether an item shall show the search."""
        if not self._asked.searches:
            return False
        known = {result.url for result in self._results}
        self._results += [result for result in parse_results(event.info) if result.url not in known]
        return not self._has_searched and not isinstance(self._open, MessageItem)

    def snapshot(self) -> list[JSON]:
        """Return the items with the open one, for a failed response."""
        return [*self.items, self._open.item("incomplete")] if self._open is not None else self.items

    def _add_to_open(self) -> list[ItemEvent]:
        """Close the open item and process the events that waited for that."""
        waiting, self._pending = self._pending, []
        return [*self._close(), *(happening for event in waiting for happening in self.feed(event))]

    def _open_item(self, event: Event) -> list[ItemEvent]:
        index = len(self.items)
        item: _OutputItem
        if isinstance(event, ReasoningDelta | EncryptedReasoning):
            item = ReasoningItem(
                output_id("reasoning", self._response, index), index, self._asked.include_encrypted
            )
        elif isinstance(event, ToolCallStart):
            kind = "custom_tool_call" if event.custom else "function_call"
            item = FunctionCallItem(
                output_id(kind, self._response, index),
                index,
                kind,
                event,
                self._asked.namespaces.get(event.name),
            )
        elif isinstance(event, CompactionDelta | CompactionDone):
            item = CompactionItem(output_id("compaction", self._response, index), index)
        elif isinstance(event, SearchInfo) or (isinstance(event, ServerToolCall) and event.searches):
            self._has_searched = True
            item = WebSearchItem(
                output_id("web_search_call", self._response, index),
                index,
                event if isinstance(event, ServerToolCall) else None,
                self._results if self._asked.include_sources else None,
            )
        elif isinstance(event, ServerToolList):
            item = McpListToolsItem(output_id("mcp_list_tools", self._response, index), index, event)
        elif isinstance(event, ApprovalRequest):
            item = ApprovalRequestItem(output_id(APPROVAL, self._response, index), index, event)
        elif isinstance(event, ServerToolCall):
            item = McpCallItem(output_id("mcp_call", self._response, index), index, event)
        else:
            item = MessageItem(
                output_id("message", self._response, index), index, self._asked.logprobs, self._results
            )
        self._open = item
        added = {"output_index": index, "item": item.item("in_progress")}
        return [("response.output_item.added", added), *item.add(event)]

    def _close(self, status: str = "completed") -> list[ItemEvent]:
        if self._open is None:
            return []
        closing, self._open = self._open, None
        happenings = closing.close()
        item = closing.item(status)
        done = {"output_index": len(self.items), "item": item}
        self.items.append(item)
        return [*happenings, ("response.output_item.done", done)]
