"""Anthropic's tools and `tool_choice` in the neutral shape.

    name, input_schema; type "custom" or none    a function; the schema untouched
    web_search_*                                 Qwen's own search: `enable_search`, forced where the choice
                                                 names it
    qproxy, mcp, function                        as on chat
    any other type                               dropped and named: it runs at Anthropic, or only Claude knows
                                                 its schema

A cache marker is kept on the last tool only, where DashScope looks. Fields for Claude alone (`defer_loading`,
`allowed_callers`, `input_examples`) are dropped. `tool_adapter` shortens names of up to 128 characters and
restores them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from qproxy.wire import tool_schemas
from qproxy.wire.endpoints import validation
from qproxy.wire.endpoints.anthropic.content_blocks import MARKER
from qproxy.wire.events import JSON
from qproxy.wire.server_tools import ServerToolRequest

CHOICES = {"auto": "auto", "any": "required", "none": "none"}
PASSED = ("qproxy", "mcp", "function")
"""Types of tools that are declared as on chat."""


@dataclass(frozen=True, slots=True)
class AnthropicTools:
    """The tools of a request."""

    tools: list[JSON]
    tool_choice: JSON = None
    params: dict[str, JSON] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    server_tools: tuple[ServerToolRequest, ...] = ()


def parse_tools(fields: Mapping[str, JSON], added: Sequence[JSON] = ()) -> AnthropicTools:
    """Parse the tools of a request, and those `added` in its messages. Raises RequestError that names the
    invalid field."""
    declared_tools = fields.get("tools") or []
    names = [tool.get("name") for tool in declared_tools if isinstance(tool, dict)]
    tools = [*declared_tools, *(tool for tool in added if tool.get("name") not in names)]
    entries = [validation.object_(entry, f"tools[{number}]") for number, entry in enumerate(tools)]
    search_names = [entry.get("name") for entry in entries if _is_search(entry)]
    dropped_names = [
        entry.get("name") for entry in entries if not _is_custom(entry) and entry["type"] not in PASSED
    ]
    chat_entries = [_chat_entry(entry, f"tools[{number}]") for number, entry in enumerate(entries)]
    _check_names(entries)
    if entries and entries[-1].get("cache_control") and _is_custom(entries[-1]):
        chat_entries[-1]["cache_control"] = MARKER
    choice, name = _choice(fields.get("tool_choice"))
    if name is not None and name in dropped_names:
        choice = None
    declared = tool_schemas.parse_tools({"tools": chat_entries, "tool_choice": choice})
    has_tools = bool(declared.tools or declared.server_tools)
    params = _params(fields.get("tool_choice") or {}, entries, has_tools)
    if search_names:
        params["enable_search"] = True
        if name is not None and name in search_names:
            params["search_options"] = {"forced_search": True}
    search_paths = {f"tools[{number}]" for number, entry in enumerate(entries) if _is_search(entry)}
    return AnthropicTools(
        declared.tools,
        declared.tool_choice if has_tools else None,
        params,
        tuple(path for path in declared.ignored if path not in search_paths),
        declared.server_tools,
    )


def _is_custom(entry: Mapping[str, JSON]) -> bool:
    return entry.get("type") in (None, "custom")


def _is_search(entry: Mapping[str, JSON]) -> bool:
    return isinstance(entry.get("type"), str) and entry["type"].startswith("web_search_")


def _chat_entry(entry: dict[str, JSON], path: str) -> dict[str, JSON]:
    """Return a custom tool as chat declares it; another type unchanged."""
    if not _is_custom(entry):
        validation.string(entry["type"], f"{path}.type")
        return entry
    if entry.get("name") is None:
        validation.missing(f"{path}.name")
    function: dict[str, JSON] = {"name": validation.string(entry["name"], f"{path}.name")}
    if not function["name"].strip():
        validation.wrong_value(f"{path}.name", "a tool needs a name.")
    if entry.get("description") is not None:
        function["description"] = validation.string(entry["description"], f"{path}.description")
    if entry.get("input_schema") is None:
        validation.missing(f"{path}.input_schema")
    function["parameters"] = validation.object_(entry["input_schema"], f"{path}.input_schema")
    if entry.get("strict") is not None:
        function["strict"] = validation.boolean(entry["strict"], f"{path}.strict")
    return {"type": "function", "function": function}


def _check_names(entries: list[dict[str, JSON]]) -> None:
    places: dict[str, int] = {}
    for number, entry in enumerate(entries):
        if not _is_custom(entry):
            continue
        first = places.setdefault(entry["name"], number)
        if first != number:
            message = f"{entry['name']!r:.100} is declared twice, first by 'tools[{first}]'."
            validation.wrong_value(f"tools[{number}].name", message)


def _choice(choice: JSON) -> tuple[JSON, str | None]:
    """Return the choice in chat's words, and the name of the tool that it requires."""
    if choice is None:
        return None, None
    kind = choice if isinstance(choice, str) else validation.object_(choice, "tool_choice").get("type")
    if kind == "tool":
        name = validation.string(choice.get("name"), "tool_choice.name")
        return {"type": "function", "function": {"name": name}}, name
    return CHOICES[validation.one_of(CHOICES)(kind, "tool_choice.type")], None


def _params(choice: JSON, entries: list[dict[str, JSON]], has_tools: bool) -> dict[str, JSON]:
    params: dict[str, JSON] = {}
    if has_tools and isinstance(choice, dict) and choice.get("disable_parallel_tool_use") is True:
        params["parallel_tool_calls"] = False
    if has_tools and any(entry.get("eager_input_streaming") is True for entry in entries):
        params["tool_stream"] = True
    return params
