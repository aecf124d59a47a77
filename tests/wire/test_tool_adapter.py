"""Tools that Qwen rejects are changed in the request and restored in the response."""

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qproxy.wire import tool_schemas
from qproxy.wire.events import ChoiceFinished, ToolCallArgumentsDelta, ToolCallStart, Turn
from qproxy.wire.tool_adapter import adapt_tools, alias_name
from tests.examples import examples


def named(*names):
    return [{"type": "function", "function": {"name": name}} for name in names]


PATCH = {"type": "custom", "custom": {"name": "patch", "description": "Apply a patch."}}


def adapted(tools, messages=(), choice=None) -> tuple[Turn, Any]:
    """Return the changed turn, and the stage that reverses the change."""
    return adapt_tools(turn(tools, messages, choice), names=True)


def turn(tools, messages=(), choice=None):
    return Turn("chatcmpl-1", 0, "m", list(messages), tools=tools, tool_choice=choice)


def test_accepted_tools_are_unchanged():
    """The turn is the same object, and there is nothing to reverse."""
    plain = turn(named("a", "b-c_9"))
    assert adapt_tools(plain, names=True) == (plain, None)
    picky = turn(named("a.b"))
    assert adapt_tools(picky, names=False) == (picky, None)


@pytest.mark.parametrize("name", ["search", "a.b", "mcp/tool:x", "x" * 65, "größe", "a b"])
def test_names(name):
    """A name that Qwen rejects gets a replacement in tools, choice and history, and is restored in the
    response."""
    call = {"id": "1", "type": "function", "function": {"name": name, "arguments": "{}"}}
    messages = [
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "name": name, "content": "x"},
    ]
    choice = {"type": "function", "function": {"name": name}}
    changed, undo = adapted(named(name, "fine"), messages, choice)
    (new,) = {tool["function"]["name"] for tool in changed.tools} - {"fine"}
    assert new not in (name, "search")
    assert len(new) <= 64
    assert new.isascii()
    assert changed.tool_choice["function"]["name"] == new
    assert changed.messages[0]["tool_calls"][0]["function"]["name"] == new
    assert changed.messages[1]["name"] == new
    assert (
        messages[0]["tool_calls"][0]["function"]["name"] == name
    )  # the client's own objects are not changed
    out = list(undo.feed(ToolCallStart(0, "1", new)))
    assert out == [ToolCallStart(0, "1", name)]
    assert list(undo.feed(ToolCallArgumentsDelta(0, "{}"))) == [ToolCallArgumentsDelta(0, "{}")]


def test_a_name_that_is_no_longer_declared():
    """A call of the history gets a replacement for its name even if no tool has it any more."""
    call = {"id": "1", "type": "function", "function": {"name": "a.b", "arguments": "{}"}}
    changed, undo = adapted([], [{"role": "assistant", "tool_calls": [call]}])
    assert changed.messages[0]["tool_calls"][0]["function"]["name"] == "a_b"
    assert undo is not None


def test_replacements_do_not_collide():
    """Two names with one valid part, and a replacement that is in use, stay distinct; the same name gets the
    same one."""
    used = {"a.b", "a/b", "c.d", "c_d", "x" * 65, "x" * 66}
    stand_ins = {alias_name(name, used) for name in used}
    assert len(stand_ins) == len(used)
    assert alias_name("a.b", used) == alias_name("a.b", used)


def test_custom_tools_become_functions():
    """A custom tool, its choice and its calls in the history become a function with one string parameter."""
    history = [
        {
            "role": "assistant",
            "tool_calls": [{"id": "1", "type": "custom", "custom": {"name": "patch", "input": 'a "b"'}}],
        }
    ]
    read = tool_schemas.parse_tools(
        {"tools": [PATCH], "tool_choice": {"type": "custom", "custom": {"name": "patch"}}}
    )
    changed, _ = adapt_tools(turn(read.tools, history, read.tool_choice), names=True)
    (tool,) = changed.tools
    assert tool["function"]["name"] == "patch"
    assert tool["function"]["parameters"]["required"] == ["input"]
    assert changed.tool_choice == {"type": "function", "function": {"name": "patch"}}
    call = changed.messages[0]["tool_calls"][0]
    assert call["type"] == "function"
    assert json.loads(call["function"]["arguments"]) == {"input": 'a "b"'}


def test_a_grammar_is_in_the_description():
    """The format of a custom tool is part of the model's prompt."""
    form = {"type": "grammar", "grammar": {"syntax": "lark", "definition": 'start: "x"'}}
    custom = {"type": "custom", "name": "p", "format": form}
    changed, _ = adapt_tools(turn(tool_schemas.parse_tools({"tools": [custom]}).tools), names=True)
    assert 'start: "x"' in json.dumps(changed.tools).replace('\\"', '"')


def unwrapped(text, cuts=()):
    """Return the input of a custom call whose arguments are `text`."""
    _, undo = adapted([PATCH])
    spots = [0, *sorted({cut % (len(text) + 1) for cut in cuts}), len(text)]
    events: list[Any] = [ToolCallStart(0, "1", "patch")]
    events += [ToolCallArgumentsDelta(0, text[a:b]) for a, b in itertools.pairwise(spots) if a < b]
    out = [event for item in [*events, ChoiceFinished("tool_calls")] for event in undo.feed(item)]
    assert out[0] == ToolCallStart(0, "1", "patch", custom=True)
    assert out[-1] == ChoiceFinished("tool_calls")
    return "".join(event.text for event in out if isinstance(event, ToolCallArgumentsDelta))


INPUTS = {
    "plain": ('{"input": "*** Begin\\n\\"x\\""}', '*** Begin\n"x"'),
    "other keys first": ('{"why": {"a": [1]}, "input": "x"}', "x"),
    "other keys after": ('{"input": "x", "n": 1}', "x"),
    "cut": ('{"input": "abc', "abc"),
    "no JSON": ("*** Begin Patch", "*** Begin Patch"),
    "a string": ('"abc"', '"abc"'),
    "not text": ('{"input": {"a": 1}}', '{"a": 1}'),
    "empty": ("{}", ""),
    "another key": ('{"patch": "x"}', '{"patch": "x"}'),
    "a pair of escapes": ('{"input": "\\ud83c\\udf0a"}', "🌊"),
}


@pytest.mark.parametrize(("text", "expected"), INPUTS.values(), ids=INPUTS.keys())
def test_inputs(text, expected):
    """The client gets the bare input, whatever JSON the model wrote, at any cut."""
    assert unwrapped(text) == unwrapped(text, range(len(text))) == expected


@given(st.text(), st.lists(st.integers(0, 200), max_size=6), st.booleans())
@examples(200)
def test_any_input(text, cuts, ascii):
    """Any text is restored unchanged, at any cut of the stream."""
    assert unwrapped(json.dumps({"input": text}, ensure_ascii=ascii), cuts) == text


def test_inputs_are_streamed():
    """The input is forwarded without delay."""
    _, undo = adapted([PATCH])
    list(undo.feed(ToolCallStart(0, "1", "patch")))
    assert list(undo.feed(ToolCallArgumentsDelta(0, '{"input": "abc'))) == [ToolCallArgumentsDelta(0, "abc")]
    assert list(undo.feed(ToolCallArgumentsDelta(0, "def"))) == [ToolCallArgumentsDelta(0, "def")]
