"""The output items of a response, in their order, as the events of an answer make them grow.

One item is open at a time, and it is closed before the next one opens: clients act on `output_item.done`.  So a call
is finished before anything else begins; where a server mixes the pieces of two calls, what is not the open one's
waits.  An item that was cut short says `incomplete`.

OpenAPI `OutputItem`, `ResponseOutputItemAddedEvent`, `ResponseOutputItemDoneEvent`.
"""

from __future__ import annotations

from typing import Protocol

from qproxy.wire.endpoints.responses.objects import output_id
from qproxy.wire.endpoints.responses.output_items import Call, Happening, Message, OwnCall, Thought
from qproxy.wire.endpoints.responses.request import Asked
from qproxy.wire.events import JSON, Arguments, Event, Reasoning, ServerCall, ServerResult, Text, ToolCall


class _Item(Protocol):
    """An output item that is open."""

    def takes(self, event: Event) -> bool: ...

    def whole(self) -> bool:
        """Whether something else may begin now."""
        ...

    def add(self, event: Event) -> list[Happening]: ...

    def close(self) -> list[Happening]: ...

    def item(self, status: str) -> JSON: ...


class Output:
    """The output items of one response."""

    def __init__(self, response: str, asked: Asked) -> None:
        self.items: list[JSON] = []
        """Those that are closed."""
        self._response = response
        self._asked = asked
        self._open: _Item | None = None
        self._waiting: list[Event] = []

    def feed(self, event: Event) -> list[Happening]:
        """What happens because of an event of the answer."""
        current = self._open
        if current is not None and current.takes(event):
            out = current.add(event)
            return [*out, *self._go_on()] if self._waiting and current.whole() else out
        if current is not None and not current.whole():
            self._waiting.append(event)
            return []
        if isinstance(event, Arguments | ServerResult):
            return []  # blanks after a call that was whole
        return [*self._close(), *self._begin(event)]

    def end(self, *, cut: bool) -> list[Happening]:
        """Close what is open; an answer that is not `cut` short and said nothing gets one empty message."""
        out: list[Happening] = []
        while self._waiting:
            out += self._go_on()
        said = self._open is not None and not isinstance(self._open, Thought)
        if not cut and not said and all(item["type"] == "reasoning" for item in self.items):
            out += [*self._close(), *self._begin(Text(""))]
        return [*out, *self._close("incomplete" if cut else "completed")]

    def so_far(self) -> list[JSON]:
        """The items with the open one, for a response that broke off."""
        return [*self.items, self._open.item("incomplete")] if self._open is not None else self.items

    def _go_on(self) -> list[Happening]:
        """Close the open item and take up what has waited for that."""
        waiting, self._waiting = self._waiting, []
        return [*self._close(), *(happening for event in waiting for happening in self.feed(event))]

    def _begin(self, event: Event) -> list[Happening]:
        index = len(self.items)
        item: _Item
        if isinstance(event, Reasoning):
            item = Thought(output_id("reasoning", self._response, index), index, self._asked.sealed)
        elif isinstance(event, ToolCall):
            kind = "custom_tool_call" if event.custom else "function_call"
            item = Call(
                output_id(kind, self._response, index), index, kind, event, self._asked.groups.get(event.name)
            )
        elif isinstance(event, ServerCall):
            item = OwnCall(output_id("mcp_call", self._response, index), index, event)
        else:
            item = Message(output_id("message", self._response, index), index, self._asked.logprobs)
        self._open = item
        added = {"output_index": index, "item": item.item("in_progress")}
        return [("response.output_item.added", added), *item.add(event)]

    def _close(self, status: str = "completed") -> list[Happening]:
        if self._open is None:
            return []
        closing, self._open = self._open, None
        item = closing.item(status)
        done = {"output_index": len(self.items), "item": item}
        self.items.append(item)
        return [*closing.close(), ("response.output_item.done", done)]
