"""Input items that change the request they stand in: `configuration_update`, and items with further tools.

A change is in effect from its item on, and a request has one response, after all of its items: so the last
update counts, also one of an earlier response that the request continues. It replaces the field of the
request, which a client leaves as it was so that the prompt cache stays good.

OpenAPI `ConfigurationUpdateItemParam`, `AdditionalToolsItemParam`, `ToolSearchOutputItemParam`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from qproxy.wire.endpoints.responses.tools import ResponsesTools, parse_tools
from qproxy.wire.errors import RequestError
from qproxy.wire.events import JSON

CHANGES = (("reasoning", "effort"), ("text", "format"))


def apply_updates(fields: dict[str, JSON], items: Sequence[JSON]) -> dict[str, JSON]:
    """Return the request's fields with the configuration updates among its items."""
    updates = [item for item in items if item["type"] == "configuration_update"]
    for update in updates:
        for name, key in CHANGES:
            if key in update.get(name, ()):
                fields = {**fields, name: {**fields.get(name, {}), key: update[name][key]}}
    return fields


def parse_all_tools(fields: Mapping[str, JSON], items: Sequence[JSON]) -> ResponsesTools:
    """Return the tools of a request and of its items; a name that is declared already is not declared
    again."""
    more = [
        (f"{item['id']}.tools[{number}]", tool)
        for item in items
        if item["type"] in ("additional_tools", "tool_search_output")
        for number, tool in enumerate(item["tools"])
    ]
    if not more:
        return parse_tools(fields)
    own = fields.get("tools", [])
    names = {_name(tool) for tool in own}
    paths: list[str] = []
    added: list[JSON] = []
    for path, tool in more:
        if _name(tool) is None or _name(tool) not in names:
            names.add(_name(tool))
            paths.append(path)
            added.append(tool)

    def renamed(text: str) -> str:
        """Return a text with the paths of added tools as those of their items."""
        return re.sub(
            r"\btools\[([0-9]{1,9})\]",
            lambda match: match[0] if int(match[1]) < len(own) else paths[int(match[1]) - len(own)],
            text,
        )

    try:
        offered = parse_tools({**fields, "tools": [*own, *added]})
    except RequestError as error:
        param = None if error.param is None else renamed(error.param)
        raise RequestError(renamed(error.message), param=param, code=error.code) from None
    return replace(offered, ignored=tuple(map(renamed, offered.ignored)))


def _name(tool: JSON) -> str | None:
    """Return the name that a tool declares; None for one without."""
    if not isinstance(tool, dict):
        return None
    name = tool.get("name")
    return name if isinstance(name, str) else None
