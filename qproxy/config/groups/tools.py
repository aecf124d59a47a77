"""Tools that the server runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from qproxy.config.setting import setting


@dataclass(frozen=True)
class ToolSettings:
    """Tools that the server runs."""

    max_tool_rounds: int = setting(
        8, "maximum rounds of server-side tool calls per response, before a final one without tools"
    )
    max_tool_processes: int = setting(
        16, "concurrent tool processes for all clients; further calls queue, within their timeout"
    )
    tool_round_cache_seconds: float = setting(
        3600.0,
        "seconds to cache the hidden tool rounds of a response that ended with the client's own tool calls",
    )
    client_mcp_hosts: list[str] = setting(
        [],
        "hosts (`mcp.example.com`, `*.example.com`, `host:8443`) of MCP servers that clients may name by "
        "`server_url`; without any they cannot",
    )
    client_mcp_private: bool = setting(
        False, "let client_mcp_hosts have private addresses, and be reached over plain HTTP"
    )
    client_mcp_timeout: float = setting(
        10.0, "maximum seconds to connect to an MCP server that a client names, and to list its tools"
    )
    web_search_sources: bool = setting(
        True,
        "use DashScope's native API for web searches that clients request: the other one names no sources",
    )
    web_search_tool: str | None = setting(
        None,
        "name of a tool of the server (`search`, `server__search`) for web searches that clients request of "
        "models without one",
    )
    missing_web_search: Literal["drop", "error"] = setting(
        "drop",
        "response to a web search that neither the model nor web_search_tool has: ignore the request for it, "
        "or a 400",
    )
    reasoning_cache_seconds: float = setting(3600.0, "seconds to cache encrypted reasoning; 0 disables it")
