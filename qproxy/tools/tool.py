"""One tool: what the model is told of it, and what runs when the model calls it."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from qproxy.wire.events import JSON

ToolPolicy: TypeAlias = Literal["always", "on request", "never"]
ToolFunction: TypeAlias = Callable[[dict[str, Any]], Awaitable[str]]
NAME_PATTERN = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}\Z")
"""What Qwen and OpenAI both take."""


class ToolError(Exception):
    """What the model is told of a call that failed."""


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool that this server runs."""

    name: str
    description: str
    parameters: Mapping[str, JSON]
    """A JSON Schema of an object."""
    validate: Callable[[str], Awaitable[dict[str, Any]]] = field(repr=False)
    """The model's JSON text as arguments that fit; raises ToolError."""
    run: ToolFunction = field(repr=False)
    """Given checked arguments, the result as text; raises ToolError."""
    kind: str
    """command, mcp or function."""
    timeout: float = 30.0
    policy: ToolPolicy = "on request"
    server: str | None = None
    """The MCP server's label."""
    remote_name: str = ""
    """The name that the MCP server gives it."""
    unavailable: Callable[[], str | None] = field(default=lambda: None, repr=False)
    """Why it cannot run here, where that is so."""
    isolation: str = ""
    """What holds it: sandbox, none, or nothing to say."""

    @property
    def unavailable_reason(self) -> str | None:
        return self.unavailable()

    def declaration(self) -> JSON:
        """The tool in OpenAI's nested shape."""
        function = {"name": self.name, "description": self.description, "parameters": self.parameters}
        return {"type": "function", "function": function}
