"""Output items about MCP servers: the list of a server's tools, and the request to approve a call.

OpenAPI `MCPListTools`, `MCPApprovalRequest`.
"""

from __future__ import annotations

from typing import Any

from qproxy.wire.endpoints.responses.item_event import ItemEvent
from qproxy.wire.events import JSON, ApprovalRequest, Event, ServerToolList


class McpListToolsItem:
    """The tools of a server that the client requested, listed once in a conversation."""

    def __init__(self, id: str, index: int, listed: ServerToolList) -> None:
        self._index = {"item_id": id, "output_index": index}
        self._listed = listed

    def accepts(self, event: Event) -> bool:
        return False

    def add_complete(self) -> bool:
        return True

    def add(self, event: Any) -> list[ItemEvent]:
        states = ("in_progress", "completed")
        return [(f"response.mcp_list_tools.{state}", dict(self._index)) for state in states]

    def close(self) -> list[ItemEvent]:
        return []

    def item(self, status: str) -> JSON:
        return {
            "id": self._index["item_id"],
            "type": "mcp_list_tools",
            "server_label": self._listed.server,
            "tools": [] if status == "in_progress" else list(self._listed.tools),
            "error": None,
        }


class ApprovalRequestItem:
    """A call that waits for the client's approval."""

    def __init__(self, id: str, index: int, request: ApprovalRequest) -> None:
        self._id = id
        self._request = request

    def accepts(self, event: Event) -> bool:
        return False

    def add_complete(self) -> bool:
        return True

    def add(self, event: Any) -> list[ItemEvent]:
        return []

    def close(self) -> list[ItemEvent]:
        return []

    def item(self, status: str) -> JSON:
        return {
            "id": self._id,
            "type": "mcp_approval_request",
            "server_label": self._request.server,
            "name": self._request.tool,
            "arguments": self._request.arguments,
        }
