"""The tools that this server runs, and what holds them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from qproxy.dashboard.auth import Visit
from qproxy.dashboard.rendering import Pages
from qproxy.server.http_response import Reply
from qproxy.server.state import Parts
from qproxy.tools.tool import Tool

FENCES = {
    "bubblewrap": "in the sandbox",
    "none": "without a fence",
    "elsewhere": "on another server",
    "": "in this process",
}


class ToolPages:
    """The page."""

    def __init__(self, parts: Parts, pages: Pages) -> None:
        self._parts = parts
        self._pages = pages

    def views(self) -> Iterator[tuple[str, str, Callable[..., Awaitable[Reply]]]]:
        yield "GET", "/tools", self._list

    async def _list(self, visit: Visit) -> Reply:
        toolbox = self._parts.workshop.toolbox
        tools = sorted(toolbox.tools().values(), key=lambda tool: tool.name)
        return self._pages.page(
            visit,
            "tools.html",
            tools=[_row(tool) for tool in tools],
            sources=[{"label": source.label, "state": source.state} for source in toolbox.sources],
            site=toolbox.site,
            limit=self._parts.workshop.limit,
        )


def _row(tool: Tool) -> dict[str, Any]:
    refusal = tool.refusal
    return {
        "tool": tool,
        "about": tool.description.partition("\n")[0],
        "fence": FENCES.get(tool.fence, tool.fence),
        "refusal": refusal,
        "level": "bad" if refusal else "odd" if tool.offer == "never" else "good",
    }
