"""Anthropic's tools and tool choices in the neutral shape, and names that Qwen rejects."""

import pytest

from qproxy.wire import tool_adapter
from qproxy.wire.errors import RequestError
from qproxy.wire.events import ToolCallStart
from tests.wire.endpoints.anthropic.test_request import decode

SCHEMA = {"type": "object", "properties": {"a": {"const": 1}}, "$schema": "x", "exclusiveMinimum": 0}


def tool(name="get", **more):
    return {"name": name, "description": "d", "input_schema": SCHEMA, **more}


def function(name="get", **more):
    return {"type": "function", "function": {"name": name, "description": "d", "parameters": SCHEMA, **more}}


EPHEMERAL = {"type": "ephemeral"}
TOOLS = {
    "without a type": ([tool()], [function()]),
    "custom": ([tool(type="custom")], [function()]),
    "strict": ([tool(strict=True)], [function(strict=True)]),
    "without a description": (
        [{"name": "x", "input_schema": {}}],
        [{"type": "function", "function": {"name": "x", "parameters": {}}}],
    ),
    "for Claude alone": (
        [tool(defer_loading=True, allowed_callers=["x"], input_examples=[{}])],
        [function()],
    ),
    "a marked last one": (
        [tool("a", cache_control=EPHEMERAL), tool("b", cache_control={"type": "ephemeral", "ttl": "1h"})],
        [function("a"), {**function("b"), "cache_control": EPHEMERAL}],
    ),
    "a marked first one": ([tool("a", cache_control=EPHEMERAL), tool("b")], [function("a"), function("b")]),
}


@pytest.mark.parametrize(("tools", "expected"), TOOLS.values(), ids=TOOLS)
def test_tools(tools, expected):
    """Each tool becomes a function with the client's own schema object."""
    turn = decode(tools=tools)
    assert turn.tools == expected
    assert turn.tools[0]["function"]["parameters"] is tools[0]["input_schema"]
    assert turn.ignored == ()


KINDS = (
    "web_fetch_20250910",
    "code_execution_20250825",
    "computer_20250124",
    "tool_search_tool_regex_20251119",
    "mcp_toolset",
    "bash_20250124",
    "text_editor_20250728",
    "memory_20250818",
    "tool_of_tomorrow",
)


@pytest.mark.parametrize("kind", KINDS)
def test_tools_of_another_vendor(kind):
    """A tool that is not available here is dropped and named; a choice that names it is dropped, too."""
    turn = decode(tools=[{"type": kind, "name": "x"}, tool()], tool_choice={"type": "tool", "name": "x"})
    assert turn.tools == [function()]
    assert turn.tool_choice is None
    assert turn.ignored == ("tools[0]",)
    alone = decode(tools=[{"type": kind, "name": "x"}], tool_choice={"type": "any"})
    assert (alone.tools, alone.tool_choice, alone.params) == ([], None, {"max_tokens": 100})


def test_tools_defined_in_messages():
    """A tool that a message defines is offered like any other, once."""
    added = {"type": "tool_addition", "tool": {"type": "tool_definition", "definition": tool("late")}}
    again = {"type": "tool_addition", "tool": {"type": "tool_definition", "definition": tool()}}
    messages = [{"role": "user", "content": "q"}, {"role": "system", "content": [added, again]}]
    turn = decode(tools=[tool()], messages=messages)
    assert turn.tools == [function(), function("late")]
    with pytest.raises(RequestError) as caught:
        decode(messages=[{"role": "system", "content": [{"type": "tool_addition", "tool": {}}]}])
    assert caught.value.param == "messages[0].content[0].tool.name"


def test_web_search():
    """Anthropic's search becomes Qwen's, and is forced if the choice names it."""
    search = {"type": "web_search_20250305", "name": "web_search", "max_uses": 8}
    turn = decode(tools=[search, tool()])
    assert turn.tools == [function()]
    assert turn.params == {"max_tokens": 100, "enable_search": True}
    turn = decode(tools=[search], tool_choice={"type": "tool", "name": "web_search"})
    assert turn.params["search_options"] == {"forced_search": True}
    assert (turn.tools, turn.tool_choice, turn.ignored) == ([], None, ())


def test_tools_of_this_server():
    """Tools of this server are requested as in chat."""
    turn = decode(tools=[{"type": "qproxy", "name": "clock"}, {"type": "mcp", "server_label": "docs"}])
    assert [request.path for request in turn.server_tools] == ["tools[0]", "tools[1]"]
    assert turn.tools == []


CHOICES = {
    "auto": ({"type": "auto"}, "auto", {}),
    "any": ({"type": "any"}, "required", {}),
    "none": ({"type": "none"}, "none", {}),
    "tool": ({"type": "tool", "name": "get"}, {"type": "function", "function": {"name": "get"}}, {}),
    "one at a time": (
        {"type": "auto", "disable_parallel_tool_use": True},
        "auto",
        {"parallel_tool_calls": False},
    ),
    "as many as it likes": ({"type": "any", "disable_parallel_tool_use": False}, "required", {}),
}


@pytest.mark.parametrize(("choice", "expected", "params"), CHOICES.values(), ids=CHOICES)
def test_tool_choice(choice, expected, params):
    """Each choice becomes chat's."""
    turn = decode(tools=[tool()], tool_choice=choice)
    assert turn.tool_choice == expected
    assert turn.params == {"max_tokens": 100, **params}


def test_eager_input():
    """A tool with eager input makes DashScope stream it."""
    assert decode(tools=[tool(eager_input_streaming=True)]).params["tool_stream"] is True


REFUSED = {
    "tools an object": ({"tools": {}}, "tools"),
    "a tool that is a text": ({"tools": ["x"]}, "tools[0]"),
    "no name": ({"tools": [{"input_schema": {}}]}, "tools[0].name"),
    "an empty name": ({"tools": [tool(" ")]}, "tools[0].name"),
    "no schema": ({"tools": [{"name": "x"}]}, "tools[0].input_schema"),
    "a schema that is a text": ({"tools": [{"name": "x", "input_schema": "y"}]}, "tools[0].input_schema"),
    "a kind that is a number": ({"tools": [{"type": 5, "name": "x"}]}, "tools[0].type"),
    "a name twice": ({"tools": [tool(), tool()]}, "tools[1].name"),
    "an unknown choice": ({"tools": [tool()], "tool_choice": {"type": "some"}}, "tool_choice.type"),
    "a tool that is not there": (
        {"tools": [tool()], "tool_choice": {"type": "tool", "name": "x"}},
        "tool_choice",
    ),
    "a choice without a name": ({"tools": [tool()], "tool_choice": {"type": "tool"}}, "tool_choice.name"),
}


@pytest.mark.parametrize(("change", "path"), REFUSED.values(), ids=REFUSED)
def test_rejects_invalid_tools(change, path):
    """A mistake is a 400 with the path of the value."""
    with pytest.raises(RequestError) as caught:
        decode(**change)
    assert (caught.value.status, caught.value.param) == (400, path)


def test_long_names():
    """A name of 128 characters is shortened for Qwen, even in the history, and restored in the response."""
    name = "mcp__" + "x" * 123
    turn = decode(
        tools=[tool(name)],
        tool_choice={"type": "tool", "name": name},
        messages=[
            {"role": "user", "content": "q"},
            {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": name, "input": {}}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": "r"}]},
        ],
    )
    sent, restorer = tool_adapter.adapt_tools(turn, names=True)
    short = sent.tools[0]["function"]["name"]
    assert len(short) == 64
    assert sent.tool_choice["function"]["name"] == short
    assert sent.messages[1]["tool_calls"][0]["function"]["name"] == short
    assert restorer is not None
    (back,) = restorer.feed(ToolCallStart(0, "call", short))
    assert back == ToolCallStart(0, "call", name)
