"""Tool schemas: every shape that clients send becomes the one that upstreams accept."""

import pytest

from qproxy.wire import tool_schemas
from qproxy.wire.errors import RequestError
from qproxy.wire.server_tools import ServerToolRequest

F = {"name": "f", "parameters": {"type": "object"}}
NESTED = {"type": "function", "function": F}
CHOSEN = {"type": "function", "function": {"name": "f"}}

SHAPES = {
    "none": ({}, []),
    "nested": ({"tools": [NESTED]}, [NESTED]),
    "nested without a type": ({"tools": [{"function": F}]}, [NESTED]),
    "flat": ({"tools": [{"type": "function", **F}]}, [NESTED]),
    "legacy": ({"functions": [F]}, [NESTED]),
    "declarations": (
        {"tools": [{"function_declarations": [{"name": "f",
            "parameters": {"type": "OBJECT", "properties": {"a": {"type": "STRING", "nullable": True},
                "b": {"type": "ARRAY", "items": {"type": "INTEGER"}}}}}]}]},
        [{"type": "function",
            "function": {"name": "f", "parameters": {"type": "object", "properties": {"a": {"type": ["string",
                "null"]}, "b": {"type": "array", "items": {"type": "integer"}}}}}}],
    ),
    "camel case declarations": ({"tools": [{"functionDeclarations": [F]}]}, [NESTED]),
}  # fmt: skip


@pytest.mark.parametrize(("body", "tools"), SHAPES.values(), ids=SHAPES.keys())
def test_shapes(body, tools):
    """Any shape of a client's tools becomes OpenAI's nested one."""
    assert tool_schemas.parse_tools(body).tools == tools


def test_a_property_of_any_name_is_lowered():
    """A declaration's property may be called enum, type or nullable."""
    properties = {name: {"type": "STRING"} for name in ("enum", "type", "nullable")}
    declared = [{"name": "f", "parameters": {"type": "OBJECT", "properties": properties}}]
    (tool,) = tool_schemas.parse_tools({"tools": [{"function_declarations": declared}]}).tools
    assert {one["type"] for one in tool["function"]["parameters"]["properties"].values()} == {"string"}


def test_legacy_functions_are_marked():
    """A request with `functions` is marked, so that its response uses `function_call`."""
    declared = tool_schemas.parse_tools({"functions": [F], "function_call": {"name": "f"}})
    assert declared.legacy_functions
    assert declared.tool_choice == CHOSEN


def test_unknown_kinds_are_named():
    """Agents send web_search and namespaces to every server: they are dropped and named."""
    declared = tool_schemas.parse_tools(
        {"tools": [{"type": "web_search"}, NESTED, {"type": "namespace", "name": "x"}]}
    )
    assert declared.tools == [NESTED]
    assert declared.ignored == ("tools[0]", "tools[2]")


REQUESTS = {
    "by name": ({"type": "qproxy", "name": "calculator"}, ServerToolRequest("tools[1]", name="calculator")),
    "a server": ({"type": "mcp", "server_label": "files"}, ServerToolRequest("tools[1]", server="files")),
    "some of a server": (
        {"type": "mcp", "server_label": "files", "allowed_tools": ["read"], "require_approval": "never"},
        ServerToolRequest("tools[1]", server="files", allowed=frozenset({"read"})),
    ),
    "a filter": (
        {"type": "mcp", "server_label": "files", "allowed_tools": {"tool_names": ["read"]}},
        ServerToolRequest("tools[1]", server="files", allowed=frozenset({"read"})),
    ),
}


@pytest.mark.parametrize(("entry", "request_"), REQUESTS.values(), ids=REQUESTS.keys())
def test_tools_of_this_server(entry, request_):
    """A tool of this server is requested, not declared, and may be named in the choice."""
    declared = tool_schemas.parse_tools(
        {"tools": [NESTED, entry], "tool_choice": {"type": "function", "name": "calculator"}}
    )
    assert declared.tools == [NESTED]
    assert declared.server_tools == (request_,)
    assert declared.ignored == ()
    assert declared.tool_choice == {"type": "function", "function": {"name": "calculator"}}


BAD_REQUESTS = {
    "no name": ({"type": "qproxy"}, "tools[0].name"),
    "no label": ({"type": "mcp"}, "tools[0].server_label"),
    "an address": (
        {"type": "mcp", "server_label": "x", "server_url": "file:///etc/passwd"},
        "tools[0].server_url",
    ),
    "a connector": ({"type": "mcp", "server_label": "x", "connector_id": "c"}, "tools[0].connector_id"),
    "not names": ({"type": "mcp", "server_label": "x", "allowed_tools": [1]}, "tools[0].allowed_tools"),
}


@pytest.mark.parametrize(("entry", "param"), BAD_REQUESTS.values(), ids=BAD_REQUESTS.keys())
def test_invalid_requests_for_server_tools(entry, param):
    """An invalid request for a server tool is rejected, as is a client's own server URL."""
    with pytest.raises(RequestError) as caught:
        tool_schemas.parse_tools({"tools": [entry]})
    assert caught.value.param == param


def test_schemas_are_not_copied():
    """A schema of any size is forwarded without a copy."""
    assert tool_schemas.parse_tools({"tools": [NESTED]}).tools[0] is NESTED


CHOICES = {
    "auto": ("auto", "auto"),
    "none": ("none", "none"),
    "required": ("required", "required"),
    "any": ("any", "required"),
    "a function": (CHOSEN, CHOSEN),
    "a flat function": ({"type": "function", "name": "f"}, CHOSEN),
    "allowed": (
        {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [CHOSEN]}},
        "required",
    ),
    "allowed, flat": ({"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "f"}]},
        "auto"),
    "allowed, no mode": ({"type": "allowed_tools", "allowed_tools": {"tools": [CHOSEN]}}, "auto"),
}  # fmt: skip


@pytest.mark.parametrize(("choice", "expected"), CHOICES.values(), ids=CHOICES.keys())
def test_choices(choice, expected):
    """Every form of a choice becomes one of four."""
    other = {"type": "function", "function": {"name": "g"}}
    declared = tool_schemas.parse_tools({"tools": [NESTED, other], "tool_choice": choice})
    assert declared.tool_choice == expected
    assert len(declared.tools) == (1 if "allowed_tools" in str(choice) else 2)


WRONG = {
    "not a list": ({"tools": {}}, "tools"),
    "not an object": ({"tools": ["x"]}, "tools[0]"),
    "no type": ({"tools": [{}]}, "tools[0].type"),
    "no name": ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name"),
    "blank name": ({"tools": [{"type": "function", "name": " "}]}, "tools[0].name"),
    "odd parameters": ({"tools": [{"type": "function", "function": {"name": "f", "parameters": "x"}}]},
        "tools[0].function.parameters"),
    "odd description": ({"functions": [{"name": "f", "description": 1}]}, "functions[0].description"),
    "twice": ({"tools": [NESTED, NESTED]}, "tools[1].function.name"),
    "twice, behind one that is ignored": ({"tools": [NESTED, {"type": "web_search"}, NESTED]},
        "tools[2].function.name"),
    "twice, in declarations": ({"tools": [{"function_declarations": [{"name": "g"}, F]}, NESTED]},
        "tools[1].function.name"),
    "twice, custom": ({"tools": [NESTED, {"type": "custom", "custom": {"name": "f"}}]},
        "tools[1].custom.name"),
    "allowed, unknown": ({"tools": [NESTED],
        "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [CHOSEN,
            {"type": "function", "function": {"name": "x"}}]}}}, "tool_choice.allowed_tools.tools[1]"),
    "allowed, none": ({"tools": [NESTED], "tool_choice": {"type": "allowed_tools",
        "allowed_tools": {"tools": []}}}, "tool_choice.allowed_tools.tools"),
    "allowed, odd mode": ({"tools": [NESTED], "tool_choice": {"type": "allowed_tools",
        "allowed_tools": {"mode": "x", "tools": [CHOSEN]}}}, "tool_choice.allowed_tools.mode"),
    "odd declarations": ({"tools": [{"function_declarations": {}}]}, "tools[0].function_declarations"),
    "odd choice": ({"tools": [NESTED], "tool_choice": "maybe"}, "tool_choice"),
    "unknown choice": ({"tools": [NESTED], "tool_choice": {"type": "function", "function": {"name": "x"}}},
        "tool_choice"),
    "nameless choice": ({"tools": [NESTED], "tool_choice": {"type": "function"}}, "tool_choice"),
    "legacy choice": ({"functions": [F], "function_call": {"name": "x"}}, "function_call"),
}  # fmt: skip


@pytest.mark.parametrize(("body", "param"), WRONG.values(), ids=WRONG.keys())
def test_rejects_invalid_tools(body, param):
    """An invalid tool is a 400 that names its path."""
    with pytest.raises(RequestError) as caught:
        tool_schemas.parse_tools(body)
    assert caught.value.param == param
