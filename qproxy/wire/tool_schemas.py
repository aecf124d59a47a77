"""Tool schemas between their shapes: whatever a client declares becomes OpenAI's nested `tools`.

Accepted: OpenAI's nested functions, flat functions (the Responses shape), custom tools (free-form input), the
deprecated `functions` with `function_call`, and Gemini's `{"function_declarations": [...]}` with its
upper-case types. A schema itself passes untouched (`$defs`, `strict`, 2^53 bounds): it is the model's to
read.

Server tools are requested as `{"type": "qproxy", "name": ...}` or `{"type": "mcp", "server_label": ...}`;
`qproxy.tools` knows which ones exist.

Tool types that no Qwen server supports (`web_search`, `namespace`, ...) are dropped and named, never an
error: agents send them to every server.

OpenAPI `ChatCompletionTool`, `ChatCompletionToolChoiceOption`, `ChatCompletionFunctions`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn, TypeGuard
from urllib.parse import urlsplit

from qproxy.wire import storable
from qproxy.wire.errors import RequestError
from qproxy.wire.events import JSON
from qproxy.wire.server_tools import ApprovalPolicy, ServerToolRequest

MAX_URL, MAX_HEADERS, MAX_HEADER = 2048, 32, 8192
"""Characters of an address, headers, and characters of each."""
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}")


@dataclass(frozen=True, slots=True)
class DeclaredTools:
    """The tools of a request in the neutral shape."""

    tools: list[JSON]
    tool_choice: JSON = None
    legacy_functions: bool = False
    ignored: tuple[str, ...] = ()
    server_tools: tuple[ServerToolRequest, ...] = ()


def _reject(path: str, message: str) -> NoReturn:
    raise RequestError(f"Invalid value for '{path}': {message}", param=path, code="invalid_value")


def parse_tools(body: Mapping[str, JSON]) -> DeclaredTools:
    """Return the tools that a chat request declares; raise RequestError for an invalid one."""
    entries = body.get("tools")
    legacy = entries is None and body.get("functions") is not None
    if legacy:
        entries, place = body["functions"], "functions"
    else:
        place = "tools"
    if entries is None:
        entries = []
    if not isinstance(entries, list):
        _reject(place, "expected an array of tools.")
    tools: list[JSON] = []
    paths: dict[str, str] = {}
    ignored: list[str] = []
    requested: list[ServerToolRequest] = []
    for number, entry in enumerate(entries):
        path = f"{place}[{number}]"
        if not isinstance(entry, dict):
            _reject(path, "expected an object.")
        ours = None if legacy else _request(entry, path)
        if ours is not None:
            requested.append(ours)
            continue
        found = [_function(entry, path)] if legacy else _tools(entry, path)
        if not found:
            ignored.append(path)
        for tool in found:
            name = _declarations_of(tool)
            if name in paths:
                _reject(
                    f"{path}.{tool['type']}.name", f"{name!r} is declared twice, first in '{paths[name]}'."
                )
            paths[name] = path
        tools.extend(found)
    choice = body.get("function_call") if legacy else body.get("tool_choice")
    tools, choice = _choice(tools, choice, "function_call" if legacy else "tool_choice", requested)
    return DeclaredTools(tools, choice, legacy, tuple(ignored), tuple(requested))


def _request(entry: dict[str, JSON], path: str) -> ServerToolRequest | None:
    """Return the server tool that the entry requests; None if it declares a tool of the client."""
    kind = entry.get("type")
    if kind == "qproxy":
        name = entry.get("name")
        if not _is_nonempty_name(name):
            _reject(f"{path}.name", "expected the name of a server tool.")
        return ServerToolRequest(path, name=name)
    if kind != "mcp":
        return None
    label = entry.get("server_label")
    if not _is_nonempty_name(label):
        _reject(f"{path}.server_label", "expected the label of a connected MCP server.")
    for key in ("connector_id", "tunnel_id"):
        if entry.get(key) is not None:
            _reject(f"{path}.{key}", "this server only connects to MCP servers by their label or address.")
    return ServerToolRequest(
        path,
        server=label,
        allowed=_allowed(entry.get("allowed_tools"), f"{path}.allowed_tools"),
        approval=_approval(entry.get("require_approval"), f"{path}.require_approval"),
        url=None if entry.get("server_url") is None else _url(entry["server_url"], f"{path}.server_url"),
        headers=_headers(entry, path),
    )


def _url(value: JSON, path: str) -> str:
    """Return the address of an MCP server."""
    try:
        parts = urlsplit(value if isinstance(value, str) and len(value) <= MAX_URL else "")
        valid = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        valid = False
    if not valid or not value.isascii() or not value.isprintable() or "@" in parts.netloc or " " in value:
        _reject(path, "expected an http(s) URL of an MCP server, without a user name.")
    return str(value)


def _headers(entry: dict[str, JSON], path: str) -> dict[str, str]:
    """Return the headers that a client wants its MCP server to get."""
    given = entry.get("headers") or {}
    if not isinstance(given, dict) or len(given) > MAX_HEADERS:
        _reject(f"{path}.headers", f"expected an object with at most {MAX_HEADERS} headers.")
    token = entry.get("authorization")
    headers = {**given, **({} if token is None else {"authorization": f"Bearer {token}"})}
    for name, value in headers.items():
        if not _HEADER_NAME.fullmatch(name) or not isinstance(value, str) or not _is_header_value(value):
            _reject(f"{path}.headers", "expected names and values of HTTP headers.")
    return headers


def _is_header_value(value: str) -> bool:
    return value.isascii() and value.isprintable() and len(value) <= MAX_HEADER


def _approval(value: JSON, path: str) -> ApprovalPolicy:
    """Return which tools need an approval: none if the client does not say, since the operator declared the
    server."""
    if value in (None, "never"):
        return ApprovalPolicy()
    if value == "always":
        return ApprovalPolicy(otherwise=True)
    if not isinstance(value, dict):
        _reject(path, "expected always, never or an object with their tools.")
    always, never = (_allowed(value.get(name), f"{path}.{name}") for name in ("always", "never"))
    return ApprovalPolicy(always or frozenset(), never or frozenset(), otherwise=never is not None)


def _allowed(value: JSON, path: str) -> frozenset[str] | None:
    """Return the names in `allowed_tools`: a list, or an object that holds one."""
    names = value.get("tool_names") if isinstance(value, dict) else value
    if names is None:
        return None
    if not isinstance(names, list) or not all(map(_is_nonempty_name, names)):
        _reject(path, "expected an array of tool names.")
    return frozenset(names)


def _tools(entry: dict[str, JSON], path: str) -> list[JSON]:
    """Return the tools of one entry: one, several (declarations), or none of a type that Qwen supports."""
    for key in ("function_declarations", "functionDeclarations"):
        if key in entry:
            declarations = entry[key]
            if not isinstance(declarations, list):
                _reject(f"{path}.{key}", "expected an array of function declarations.")
            return [
                _function(_lowercase_types(one), f"{path}.{key}[{n}]") for n, one in enumerate(declarations)
            ]
    kind = entry.get("type", "function" if "function" in entry else None)
    if not isinstance(kind, str):
        _reject(f"{path}.type", "expected the name of a tool type.")
    if kind == "custom":
        custom = entry.get("custom") or {key: value for key, value in entry.items() if key != "type"}
        _named(custom, f"{path}.custom" if "custom" in entry else path)
        return [{"type": "custom", "custom": custom}]
    if kind != "function":
        return []
    if isinstance(entry.get("function"), dict):
        _named(entry["function"], f"{path}.function")
        return [entry if "type" in entry else {"type": "function", **entry}]
    return [_function({key: value for key, value in entry.items() if key != "type"}, path)]


def _function(function: JSON, path: str) -> JSON:
    _named(function, path)
    return {"type": "function", "function": function}


def _is_nonempty_name(value: JSON) -> TypeGuard[str]:
    return isinstance(value, str) and bool(value.strip()) and storable.is_storable_text(value)


def _named(function: JSON, path: str) -> None:
    name = function.get("name") if isinstance(function, dict) else None
    if not _is_nonempty_name(name):
        _reject(f"{path}.name", "a function needs a name without NULs or lone surrogates.")
    parameters, description = function.get("parameters"), function.get("description")
    if parameters is not None and not isinstance(parameters, dict):
        _reject(f"{path}.parameters", "expected a JSON schema (an object).")
    if description is not None and not isinstance(description, str):
        _reject(f"{path}.description", "expected a string.")


def _declarations_of(tool: JSON) -> str:
    """Return the name of a tool in the neutral shape."""
    name: str = tool[tool["type"]]["name"]
    return name


def _lowercase_types(schema: JSON) -> JSON:
    """Return a Gemini schema as JSON Schema: types in lower case, `nullable` as a type of its own."""
    if isinstance(schema, list):
        return [_lowercase_types(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    lowered = {
        key: value if _is_enum(key, value) else _lowercase_types(value) for key, value in schema.items()
    }
    kind = schema.get("type")
    if isinstance(kind, str) and kind.isupper():
        nullable = lowered.pop("nullable", False) is True
        lowered["type"] = [kind.lower(), "null"] if nullable else kind.lower()
    return lowered


def _is_enum(key: str, value: JSON) -> bool:
    return key == "enum" and isinstance(value, list)  # a property may have that name


def _choice(
    tools: list[JSON], choice: JSON, path: str, requested: Sequence[ServerToolRequest] = ()
) -> tuple[list[JSON], JSON]:
    """Return the tools that remain allowed, and the choice as "none", "auto", "required" or one function."""
    if choice is None or choice in ("none", "auto", "required"):
        return tools, choice
    if choice == "any":  # other vendors' name for it
        return tools, "required"
    if not isinstance(choice, dict):
        _reject(path, "expected none, auto, required or an object naming a function.")
    if choice.get("type") == "allowed_tools" or "allowed_tools" in choice:
        return _is_among(tools, choice, path, requested)
    name = _chosen_tool(choice)
    if name is None:
        _reject(path, "expected an object that names a function.")
    kind = next((tool["type"] for tool in tools if _declarations_of(tool) == name), None)
    if kind is None and requested:
        kind = "function"  # one of this server's, as far as is known here
    if kind is None:
        _reject(path, f"the function {name[:100]!r} is not among the tools.")
    return tools, {"type": kind, kind: {"name": name}}


def _is_among(
    tools: list[JSON], choice: dict[str, JSON], path: str, requested: Sequence[ServerToolRequest]
) -> tuple[list[JSON], JSON]:
    """Return the tools that `allowed_tools` leaves, nested (chat) or flat (Responses), and whether one must
    be called.
    """
    nested = "allowed_tools" in choice
    allowed, path = (choice["allowed_tools"], f"{path}.allowed_tools") if nested else (choice, path)
    entries = allowed.get("tools") if isinstance(allowed, dict) else None
    if not isinstance(entries, list) or not entries:
        _reject(f"{path}.tools", "expected an array that names the tools.")
    mode = allowed.get("mode", "auto")
    if mode not in ("auto", "required"):
        _reject(f"{path}.mode", "expected auto or required.")
    known, wanted = {_declarations_of(tool) for tool in tools}, set()
    for number, entry in enumerate(entries):
        name = _chosen_tool(entry)
        if name not in known and not requested:
            _reject(f"{path}.tools[{number}]", f"{str(name)[:100]!r} is not among the tools.")
        wanted.add(name)
    return [tool for tool in tools if _declarations_of(tool) in wanted], mode


def _chosen_tool(choice: JSON) -> str | None:
    if not isinstance(choice, dict):
        return None
    inner = choice.get("function") or choice.get("custom")
    name = inner.get("name") if isinstance(inner, dict) else choice.get("name")
    return name if isinstance(name, str) else None
