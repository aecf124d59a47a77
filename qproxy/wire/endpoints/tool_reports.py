"""Reports about tools that this server ran: a comment in a stream, and an object on request.

A chat client never sees the calls themselves; it requests the object by `"qproxy": {"include": ["tools"]}`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from qproxy.wire.events import Event, ServerToolCall, ServerToolResult


class ToolReport:
    """The tools that ran in one response."""

    def __init__(self) -> None:
        self._arguments: dict[str, str] = {}
        self._tools: list[dict[str, Any]] = []

    def add(self, event: ServerToolCall | ServerToolResult) -> None:
        """Record a call or its result."""
        if isinstance(event, ServerToolCall):
            self._arguments[event.id] = event.arguments
            return
        self._tools.append(
            {
                "id": event.id,
                "name": event.name,
                "arguments": self._arguments.get(event.id, ""),
                "output": event.output,
                "ok": event.ok,
                "ms": to_milliseconds(event),
            }
        )

    def to_json(self) -> dict[str, Any]:
        """Return the response's `qproxy` object."""
        return {"tools": self._tools}


def build_report(events: Iterable[Event]) -> dict[str, Any]:
    """Return the `qproxy` object of a whole response."""
    report = ToolReport()
    for event in events:
        if isinstance(event, ServerToolCall | ServerToolResult):
            report.add(event)
    return report.to_json()


def sse_comment(result: ServerToolResult) -> bytes:
    """Return an SSE comment for people who read streams; clients skip it."""
    name = "".join(char if "!" <= char <= "~" else "_" for char in result.name[:80])
    return f": tool {name} {'ok' if result.ok else 'failed'} {to_milliseconds(result)} ms\n\n".encode()


def to_milliseconds(result: ServerToolResult) -> int:
    return round(result.seconds * 1000)
