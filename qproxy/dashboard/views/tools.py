"""The tools that the server runs, and their isolation."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from qproxy.dashboard.auth import PageRequest
from qproxy.dashboard.rendering import PageRenderer
from qproxy.server.http_response import HTTPResponse
from qproxy.server.state import StateHolder
from qproxy.tools.tool import Tool

SANDBOX_LABELS = {
    "bubblewrap": "in the sandbox",
    "none": "without a sandbox",
    "elsewhere": "on another server",
    "": "in this process",
}


class ToolPages:
    """The page of tools."""

    def __init__(self, server: StateHolder, pages: PageRenderer) -> None:
        self._server = server
        self._pages = pages

    def views(self) -> Iterator[tuple[str, str, Callable[..., Awaitable[HTTPResponse]]]]:
        yield "GET", "/tools", self._list

    async def _list(self, visit: PageRequest) -> HTTPResponse:
        registry = self._server.state.tool_runtime.registry
        tools = sorted(registry.tools().values(), key=lambda tool: tool.name)
        return self._pages.page(
            visit,
            "tools.html",
            tools=[_row(tool) for tool in tools],
            sources=[{"label": source.label, "state": source.state} for source in registry.sources],
            site=registry.sandbox,
            limit=self._server.state.tool_runtime.max_rounds,
        )


def _row(tool: Tool) -> dict[str, Any]:
    reason = tool.unavailable_reason
    return {
        "tool": tool,
        "about": tool.description.partition("\n")[0],
        "isolation": SANDBOX_LABELS.get(tool.isolation, tool.isolation),
        "unavailable_reason": reason,
        "level": "error" if reason else "warning" if tool.policy == "never" else "ok",
    }
