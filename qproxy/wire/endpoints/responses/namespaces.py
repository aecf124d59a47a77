"""Tools that a client groups under a name (`namespace`), as codex does with those of its MCP servers.

Qwen has no groups: a tool is offered under the joined name `group__tool`, and the model's call is returned
with the two names apart. Invalid groups, and entries that are not tools, are left out and named.

OpenAPI `NamespaceToolParam`, `FunctionToolCall.namespace`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from qproxy.wire import tool_schemas
from qproxy.wire.errors import RequestError
from qproxy.wire.events import JSON

KINDS = ("function", "custom")


@dataclass(slots=True)
class ToolNamespaces:
    """The grouped tools of a request."""

    tools: list[JSON] = field(default_factory=list)
    """The tools as offered, under their joined names."""
    names: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Group and tool name by joined name."""
    paths: set[str] = field(default_factory=set)
    """Paths of the groups in the request."""
    ignored: list[str] = field(default_factory=list)


def qualified_name(namespace: str | None, name: str) -> str:
    """Return the name under which a tool is offered to the model."""
    return f"{namespace}__{name}" if namespace else name


def is_namespace(entry: JSON) -> bool:
    return (
        isinstance(entry, dict)
        and entry.get("type") == "namespace"
        and isinstance(entry.get("name"), str)
        and isinstance(entry.get("tools"), list)
    )


def namespace_tools(entry: JSON) -> Iterator[tuple[int, JSON]]:
    """Return the tools of a group that can be offered, with their paths."""
    for number, tool in enumerate(entry["tools"]):
        if isinstance(tool, dict) and tool.get("type") in KINDS and isinstance(tool.get("name"), str):
            yield number, tool


def parse_namespace(entries: Iterable[JSON]) -> ToolNamespaces:
    """Return the grouped tools of a request. Raises RequestError naming an invalid one."""
    groups = ToolNamespaces()
    for number, entry in enumerate(entries):
        if is_namespace(entry):
            path, found = f"tools[{number}]", dict(namespace_tools(entry))
            groups.paths.add(path)
            groups.ignored += [f"{path}.tools[{n}]" for n in range(len(entry["tools"])) if n not in found]
            for place, tool in found.items():
                _check(tool, f"{path}.tools[{place}]")
                name = qualified_name(entry["name"], tool["name"])
                groups.tools.append({**tool, "name": name})
                groups.names[name] = (entry["name"], tool["name"])
    return groups


def _check(tool: JSON, path: str) -> None:
    """Validate a tool. Raises RequestError with the tool's own path."""
    try:
        tool_schemas.parse_tools({"tools": [tool]})
    except RequestError as error:
        message, param = (text.replace("tools[0]", path) for text in (error.message, error.param or ""))
        raise RequestError(message, param=param, code=error.code) from None
