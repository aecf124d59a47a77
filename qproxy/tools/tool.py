"""One tool: its declaration for the model, and the function that a call runs."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from qproxy.wire.events import JSON

ToolPolicy: TypeAlias = Literal["always", "on request", "never"]
ToolFunction: TypeAlias = Callable[[dict[str, Any]], Awaitable[str]]
NAME_PATTERN = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}\Z")
"""Tool names that both Qwen and OpenAI accept."""


class ToolError(Exception):
    """Raised when a tool call fails, with the error message for the model."""


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool that this server runs."""

    name: str
    description: str
    parameters: Mapping[str, JSON]
    """The JSON Schema of an object."""
    validate: Callable[[str], Awaitable[dict[str, Any]]] = field(repr=False)
    """Parses the model's JSON text into valid arguments. Raises ToolError."""
    run: ToolFunction = field(repr=False)
    """Runs the tool with valid arguments, and returns its result as text. Raises ToolError."""
    kind: str
    """The kind of the tool: command, mcp or function."""
    timeout: float = 30.0
    policy: ToolPolicy = "on request"
    server: str | None = None
    """The MCP server's label."""
    remote_name: str = ""
    """The tool's name at its MCP server."""
    unavailable: Callable[[], str | None] = field(default=lambda: None, repr=False)
    """Returns the reason for which the tool cannot run here, or None."""
    isolation: str = ""
    """The isolation of the tool: sandbox, none, or empty if it does not apply."""

    @property
    def unavailable_reason(self) -> str | None:
        """The reason for which the tool cannot run here, or None."""
        return self.unavailable()

    def declaration(self) -> JSON:
        """Return the tool's declaration in OpenAI's nested shape."""
        function = {"name": self.name, "description": self.description, "parameters": self.parameters}
        return {"type": "function", "function": function}
