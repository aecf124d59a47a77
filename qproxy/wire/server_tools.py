"""Requests for the tools that this server runs: the tools, approvals of their calls, a web search.

These are parts of a `Turn`. The tools themselves are known to `qproxy.tools`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class ApprovalPolicy:
    """The tools of a server whose calls a client wants to approve (`require_approval`)."""

    always: frozenset[str] = frozenset()
    never: frozenset[str] = frozenset()
    otherwise: bool = False
    """Whether other tools need an approval."""

    def requires(self, name: str) -> bool:
        """Return whether calls of the tool with this name at its server need an approval."""
        return name in self.always or (self.otherwise and name not in self.never)


@dataclass(frozen=True, slots=True)
class ApprovedCall:
    """A call of a server tool that the model made in an earlier response, and that the client approves."""

    id: str
    """That of the request for approval; the message with its result has the same."""
    name: str
    """The name that the model uses."""
    arguments: str


@dataclass(frozen=True, slots=True)
class ServerToolRequest:
    """A client's request for a server tool: `{"type": "qproxy"}` or `{"type": "mcp"}` in `tools`."""

    path: str
    """Its path in the request (`tools[2]`), for errors."""
    name: str | None = None
    """The name of one tool."""
    server: str | None = None
    """The label of an MCP server whose tools are requested."""
    allowed: frozenset[str] | None = None
    """The only tools of that server to use, by the server's names."""
    approval: ApprovalPolicy = ApprovalPolicy()
    url: str | None = field(default=None, repr=False)
    """The address of a server that the client names itself."""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Headers for that server, which may be secrets."""


@dataclass(frozen=True, slots=True)
class WebSearchRequest:
    """A client's request for a web search, whose options are `params["web_search_options"]`."""

    path: str
    """Its path in the request (`tools[2]`), for errors."""
    forced: bool = False
    """Whether the model must search."""
