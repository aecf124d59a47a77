"""The tools of a Responses request: flat where chat's are nested, and of many more kinds.

A Qwen model can be offered functions and custom tools, alone or in a group (`namespace`), and the tools of
MCP servers that this server is connected to (`mcp` with a `server_label`); `tool_schemas` reads them. A web
search (`web_search`) becomes chat's `web_search_options`. The other kinds run on OpenAI's side
(`file_search`, ...): they are left out and named, because agents always send them. A `tool_choice` of one of
those becomes `auto`, and is named too.

OpenAPI `Tool`, `ToolChoiceParam`, `ToolChoiceAllowed`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from qproxy.wire import tool_schemas
from qproxy.wire.endpoints import validation
from qproxy.wire.endpoints.responses import namespaces
from qproxy.wire.endpoints.responses.web_search import ECHOED, WebSearch, is_web_search, parse_web_search
from qproxy.wire.events import JSON
from qproxy.wire.server_tools import WebSearchRequest

# The kinds that are offered, each with the keys that a response repeats.
SERVED_TYPES = {
    "function": ("name", "description", "parameters", "strict"),
    "custom": ("name", "description", "format"),
    "mcp": ("server_label", "server_description", "allowed_tools", "require_approval"),
}
REQUIRED_CHOICES = ("parameters", "strict")
"""Keys that a function repeats even if absent."""


@dataclass(frozen=True, slots=True)
class ResponsesTools:
    """The tools for the turn, and as the response repeats them."""

    declared: tool_schemas.DeclaredTools
    ignored: tuple[str, ...]
    namespaces: dict[str, tuple[str, str]]
    """Group and tool name by the name that is offered to the model."""
    echo: list[JSON]
    choice_echo: JSON
    web_search: WebSearch | None = None
    forces_search: bool = False

    @property
    def web_search_request(self) -> WebSearchRequest | None:
        """The web search as the turn has it."""
        search = self.web_search
        return None if search is None else WebSearchRequest(search.path, self.forces_search)


def parse_tools(fields: Mapping[str, JSON]) -> ResponsesTools:
    """Return the tools of a request. Raises RequestError naming an invalid one."""
    entries = validation.array(fields.get("tools", []), "tools")
    choice = fields.get("tool_choice")
    search = parse_web_search(entries)
    forces_search = search is not None and is_web_search(choice)
    elsewhere = not forces_search and _is_hosted(choice)
    groups = namespaces.parse_namespace(entries)
    declared = tool_schemas.parse_tools(
        {
            "tools": [*entries, *groups.tools],
            "tool_choice": "auto" if elsewhere or forces_search else _as_chat(choice),
        }
    )
    searched = None if search is None else search.path
    ignored = [path for path in declared.ignored if path not in groups.paths and path != searched]
    ignored += [*groups.ignored, *(() if search is None else search.ignored)]
    return ResponsesTools(
        declared,
        (*ignored, "tool_choice") if elsewhere else tuple(ignored),
        groups.names,
        [shown for number, entry in enumerate(entries) for shown in _echo_tool(entry, number, searched)],
        _choice_echo(declared.tool_choice, choice, forces_search),
        search,
        forces_search,
    )


def search_params(offered: ResponsesTools, params: Mapping[str, JSON]) -> dict[str, JSON]:
    """Return the parameters of chat that ask for the web search, beside those of the client."""
    assert offered.web_search is not None
    asked: dict[str, JSON] = {"web_search_options": offered.web_search.options}
    if offered.forces_search:
        given = params.get("search_options")
        asked["search_options"] = {"forced_search": True, **(given if isinstance(given, dict) else {})}
    return asked


def _echo_tool(entry: dict[str, JSON], number: int, searched: str | None) -> list[JSON]:
    """Return a tool as a response repeats it; None if it is not offered. `searched` is the path of the
    search."""
    if searched == f"tools[{number}]":
        return [{"type": entry["type"], **{key: entry[key] for key in ECHOED if entry.get(key) is not None}}]
    if namespaces.is_namespace(entry):
        group = {"type": "namespace", "name": entry["name"], "description": entry.get("description") or ""}
        return [{**group, "tools": [_flatten(tool) for _, tool in namespaces.namespace_tools(entry)]}]
    return [_flatten(entry)] if _kind(entry) in SERVED_TYPES else []


def _kind(entry: dict[str, JSON]) -> str:
    kind: str = entry.get("type") or ("function" if "name" in entry or "function" in entry else "")
    return kind


def _is_hosted(choice: JSON) -> bool:
    """Return whether a choice names a tool that is not run here."""
    if not isinstance(choice, dict):
        return False
    kind = validation.string(choice.get("type", "function"), "tool_choice.type")
    if kind == "mcp":  # a server without a tool's name cannot be forced
        return choice.get("name") is None
    return kind not in SERVED_TYPES and kind != "allowed_tools"


def _as_chat(choice: JSON) -> JSON:
    """Return a choice in the shape that `tool_schemas` reads; a tool of an MCP server by its offered name."""
    if isinstance(choice, dict) and choice.get("type") == "allowed_tools":
        validation.array(choice.get("tools"), "tool_choice.tools")
        return {"allowed_tools": choice}
    if isinstance(choice, dict) and choice.get("type") == "mcp":
        return {"type": "function", "name": f"{choice.get('server_label')}__{choice['name']}"}
    return choice


def _flatten(entry: dict[str, JSON]) -> JSON:
    """Return a function, a custom tool or an MCP server as a response repeats it."""
    kind = _kind(entry)
    inner = entry[kind] if isinstance(entry.get(kind), dict) else entry
    shown = {key: inner[key] for key in SERVED_TYPES[kind] if inner.get(key) is not None}
    if kind == "function":
        shown = {**dict.fromkeys(REQUIRED_CHOICES), **shown}
    return {"type": kind, **shown}


def _choice_echo(read: JSON, sent: JSON, forces_search: bool) -> JSON:
    """Return the choice as a response repeats it: flat."""
    if isinstance(sent, dict) and forces_search:
        return {"type": sent["type"]}
    if isinstance(sent, dict) and sent.get("type") == "allowed_tools":
        return {"type": "allowed_tools", "mode": read, "tools": sent["tools"]}
    if isinstance(sent, dict) and sent.get("type") == "mcp" and isinstance(read, dict):
        return {key: sent[key] for key in ("type", "server_label", "name")}
    if isinstance(read, dict):
        return {"type": read["type"], "name": read[read["type"]]["name"]}
    return read or "auto"
