"""What a client is told of the tools that this server ran for it: a comment in a stream, an object when it asks.

A chat client never sees the calls themselves; whoever wants to know writes `"qproxy": {"include": ["tools"]}`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from qproxy.wire.events import Event, ServerCall, ServerResult


class Report:
    """The tools that ran in one answer."""

    def __init__(self) -> None:
        self._arguments: dict[str, str] = {}
        self._tools: list[dict[str, Any]] = []

    def add(self, event: ServerCall | ServerResult) -> None:
        """Take note of a call or of what came of it."""
        if isinstance(event, ServerCall):
            self._arguments[event.id] = event.arguments
            return
        self._tools.append(
            {
                "id": event.id,
                "name": event.name,
                "arguments": self._arguments.get(event.id, ""),
                "output": event.output,
                "ok": event.ok,
                "ms": milliseconds(event),
            }
        )

    def object(self) -> dict[str, Any]:
        """The answer's `qproxy` object."""
        return {"tools": self._tools}


def of(events: Iterable[Event]) -> dict[str, Any]:
    """The `qproxy` object of a whole answer."""
    report = Report()
    for event in events:
        if isinstance(event, ServerCall | ServerResult):
            report.add(event)
    return report.object()


def comment(result: ServerResult) -> bytes:
    """One line for people who read streams; clients skip it."""
    name = "".join(char if "!" <= char <= "~" else "_" for char in result.name[:80])
    return f": tool {name} {'ok' if result.ok else 'failed'} {milliseconds(result)} ms\n\n".encode()


def milliseconds(result: ServerResult) -> int:
    return round(result.seconds * 1000)
