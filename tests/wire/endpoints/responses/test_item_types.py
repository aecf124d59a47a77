"""Every input item type, stream event and `include` value of OpenAI's SDK has a known treatment here.

A new version of the SDK that has more of them fails these tests until somebody decides about it.
"""

from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import pytest
from openai.types.responses import ResponseIncludable, ResponseInputItem, ResponseStreamEvent

from qproxy.wire.compaction import HEADER, Summary
from qproxy.wire.endpoints import responses
from qproxy.wire.endpoints.responses import tool_items
from qproxy.wire.endpoints.responses.approvals import DENIED
from qproxy.wire.endpoints.responses.input_items import ALIASES, ITEM_TYPES
from qproxy.wire.endpoints.responses.request import INCLUDES
from qproxy.wire.errors import RequestError, UpstreamError
from qproxy.wire.events import (
    ChoiceFinished,
    CompactionDelta,
    CompactionDone,
    ReasoningDelta,
    RefusalDelta,
    SearchInfo,
    ServerToolCall,
    ServerToolList,
    ServerToolResult,
    StreamFailed,
    TextDelta,
    ToolCallArgumentsDelta,
    ToolCallStart,
)
from tests.defaults import DECODE_LIMITS
from tests.wire.endpoints.responses.test_encoder import encode, read, turn

PAGE = Path(__file__).parents[4] / "docs" / "responses.md"
ID = "resp_" + "0" * 24
USER = {"role": "user", "content": "hi"}
SEALED = {"sealed": Summary("It rains.").to_json()}
REFERRED = {
    "type": "message",
    "id": "msg_1",
    "role": "user",
    "content": [{"type": "input_text", "text": "a"}],
}


def union_members(kind):
    """Return the classes of a union, however it is annotated."""
    if get_origin(kind) is Annotated:
        return union_members(get_args(kind)[0])
    return get_args(kind) if get_origin(kind) is Union else (kind,)


def literals(annotation):
    """Return the values of a `Literal` within an annotation."""
    if get_origin(annotation) is Literal:
        return set(get_args(annotation))
    return {value for part in get_args(annotation) for value in literals(part)}


def type_names(union):
    """Return the values of `type` of a union's classes."""
    return {
        name for member in union_members(union) for name in literals(member.model_fields["type"].annotation)
    }


def decode(*items, **fields):
    return responses.decode(
        {"model": "m", "input": list(items), **fields},
        id=ID,
        created=0,
        known={"msg_1": REFERRED},
        unseal=SEALED.get,
        **DECODE_LIMITS,
    )


def test_every_type_of_the_sdk_is_in_the_table():
    """The table has the types of the SDK's input items, and no other ones."""
    assert type_names(ResponseInputItem) == set(ITEM_TYPES)
    assert set(ALIASES.values()) <= set(ITEM_TYPES)
    assert {*tool_items.CALLS, *tool_items.OUTPUTS} <= set(ITEM_TYPES)


def test_the_table_is_documented():
    """docs/responses.md has a row for each type."""
    page = PAGE.read_text()
    for name, row in ITEM_TYPES.items():
        assert f"| `{name}` | {row.treatment} | {row.meaning} |" in page


def call(name, arguments, id="c1"):
    function = {"name": name, "arguments": arguments}
    return {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": id, "type": "function", "function": function}],
    }


def result(content, id="c1"):
    return {"role": "tool", "tool_call_id": id, "content": content}


FUNCTION = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"}
CUSTOM = {"type": "custom_tool_call", "call_id": "c1", "name": "p", "input": "x"}
TOOL = {"type": "function", "name": "g", "parameters": {"type": "object"}}
APPROVAL = {"type": "mcp_approval_request", "id": "ma", "server_label": "s", "name": "f", "arguments": "{}"}
SHELL = {"commands": ["ls"]}
SERVED: dict[str, tuple[list[Any], list[Any]]] = {
    "message": ([USER], [USER]),
    "function_call": ([FUNCTION], [call("f", "{}")]),
    "function_call_output": ([{"type": "function_call_output", "call_id": "c1", "output": "1"}], [result("1")]),
    "custom_tool_call": ([CUSTOM], [{**call("p", "x"), "tool_calls": [{"id": "c1", "type": "custom", "custom": {"name": "p", "input": "x"}}]}]),
    "custom_tool_call_output": ([{"type": "custom_tool_call_output", "call_id": "c1", "output": "1"}], [result("1")]),
    "mcp_call": ([{"type": "mcp_call", "id": "m1", "server_label": "s", "name": "f", "arguments": "{}", "output": "1"}], [call("s__f", "{}", "m1"), result("1", "m1")]),
    "reasoning": ([{"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]}, FUNCTION], [{**call("f", "{}"), "reasoning_content": "hm"}]),
    "compaction": ([FUNCTION, {"type": "compaction", "encrypted_content": "sealed"}], [{"role": "user", "content": HEADER + "It rains."}]),
    "compaction_trigger": ([USER, {"type": "compaction_trigger"}], [USER]),
    "item_reference": ([{"type": "item_reference", "id": "msg_1"}], [{"role": "user", "content": "a"}]),
    "configuration_update": ([USER, {"type": "configuration_update", "reasoning": {"effort": "high"}}], [USER]),
    "additional_tools": ([USER, {"type": "additional_tools", "role": "developer", "tools": [TOOL]}], [USER]),
    "tool_search_output": ([USER, {"type": "tool_search_output", "call_id": "t1", "tools": [TOOL]}], [USER]),
    "local_shell_call": ([{"type": "local_shell_call", "id": "l1", "call_id": "c1", "action": {"type": "exec", "command": ["ls"]}}], [call("local_shell", '{"type":"exec","command":["ls"]}')]),
    "local_shell_call_output": ([{"type": "local_shell_call_output", "id": "c1", "output": "a"}], [result("a")]),
    "shell_call": ([{"type": "shell_call", "call_id": "c1", "action": SHELL}], [call("shell", '{"commands":["ls"]}')]),
    "shell_call_output": ([{"type": "shell_call_output", "call_id": "c1", "output": [{"stdout": "a"}]}], [result('[{"stdout":"a"}]')]),
    "apply_patch_call": ([{"type": "apply_patch_call", "call_id": "c1", "status": "completed", "operation": {"type": "delete_file", "path": "a"}}], [call("apply_patch", '{"type":"delete_file","path":"a"}')]),
    "apply_patch_call_output": ([{"type": "apply_patch_call_output", "call_id": "c1", "status": "failed"}], [result("failed")]),
    "computer_call": ([{"type": "computer_call", "id": "x", "call_id": "c1", "actions": [{"type": "screenshot"}]}], [call("computer", '{"actions":[{"type":"screenshot"}]}')]),
    "computer_call_output": ([{"type": "computer_call_output", "call_id": "c1", "output": {"type": "computer_screenshot", "image_url": "data:x"}}], [result([{"type": "image_url", "image_url": {"url": "data:x"}}])]),
    "mcp_list_tools": ([USER, {"type": "mcp_list_tools", "id": "ml", "server_label": "s", "tools": []}], [USER]),
    "mcp_approval_request": ([USER, APPROVAL], [USER]),
    "mcp_approval_response": ([USER, APPROVAL, {"type": "mcp_approval_response", "approval_request_id": "ma", "approve": False}], [USER, call("s__f", "{}", "ma"), result(DENIED, "ma")]),
    "program": ([{"type": "program", "id": "x", "call_id": "c1", "code": "1+1", "fingerprint": "f"}], [call("program", '{"code":"1+1"}')]),
    "program_output": ([{"type": "program_output", "id": "x", "call_id": "c1", "result": "2", "status": "completed"}], [result("2")]),
}  # fmt: skip


@pytest.mark.parametrize("kind", ITEM_TYPES)
def test_treatment(kind):
    """Each type is served as the table has it, or dropped and named."""
    row = ITEM_TYPES[kind]
    if row.treatment == "served":
        items, messages = SERVED[kind]
        assert decode(*items).messages == messages
        assert decode(*items).ignored == ()
    else:
        turn = decode(USER, {"type": kind})
        assert (turn.messages, turn.ignored) == ([USER], ("input[1]",))


@pytest.mark.parametrize("kind", [*tool_items.CALLS, *tool_items.OUTPUTS])
def test_incomplete_tool_items_are_rejected(kind):
    """A call without arguments, a result without content, and either without an id is a 400 by its path."""
    (item, *_), _ = SERVED[kind]
    for absent in (
        "call_id",
        "id",
        *{"action", "actions", "operation", "code", "output", "result"} & set(item),
    ):
        if absent not in item or (absent == "id" and kind != "local_shell_call_output"):
            continue
        with pytest.raises(RequestError) as raised:
            decode({key: value for key, value in item.items() if key != absent})
        assert raised.value.code == "missing_required_parameter"
        assert (raised.value.param or "").startswith("input[0].")


def test_a_screenshot_needs_its_content():
    """A screenshot by `file_id` cannot be served, and is not dropped."""
    with pytest.raises(RequestError) as raised:
        decode({"type": "computer_call_output", "call_id": "c1", "output": {"file_id": "f"}})
    assert raised.value.param == "input[0].output.image_url"


def test_configuration_updates_replace_the_request_s_fields():
    """The last update counts, each part of it by itself, and the response repeats what is in effect."""
    form = {"type": "json_schema", "name": "x", "schema": {"type": "object"}}
    update = {"type": "configuration_update"}
    items = [
        {**update, "reasoning": {"effort": "high"}, "text": {"format": form}},
        USER,
        {**update, "reasoning": {"effort": "low"}},
    ]
    turn = decode(*items, reasoning={"effort": "medium", "summary": "auto"}, text={"verbosity": "low"})
    assert turn.params["reasoning_effort"] == "low"
    assert turn.params["response_format"]["json_schema"]["name"] == "x"
    assert turn.params["verbosity"] == "low"
    assert turn.summarize_reasoning
    echo = responses.request_of(turn).echo
    assert (echo["reasoning"]["effort"], echo["text"]["format"]) == ("low", form)
    with pytest.raises(RequestError) as raised:
        decode(USER, {**update, "reasoning": {"effort": "much"}})
    assert raised.value.param == "reasoning.effort"
    with pytest.raises(RequestError) as raised:
        decode(USER, {**update, "text": 5})
    assert raised.value.param == "input[1].text"


def test_items_with_tools_add_to_the_request_s():
    """A tool that is declared already is not declared again; others are offered, and invalid ones named."""
    more = {"type": "additional_tools", "id": "at_1", "role": "developer"}
    found = decode(
        {**more, "tools": [TOOL, {"type": "file_search"}]}, USER, tools=[{**TOOL, "name": "f"}, TOOL]
    )
    assert found.tool_names() == ["f", "g"]
    assert found.ignored == ("at_1.tools[1]",)
    named = decode({**more, "tools": [TOOL]}, USER, tool_choice={"type": "function", "name": "g"})
    assert named.tool_choice == {"type": "function", "function": {"name": "g"}}
    for tools, param in (
        ([{"type": "function"}], "at_1.tools[0].name"),
        ([5], "input[0].tools[0]"),
        (5, "input[0].tools"),
    ):
        with pytest.raises(RequestError) as raised:
            decode({**more, "tools": tools}, USER)
        assert raised.value.param == param


def test_marks_without_content_are_dropped():
    """An older name of a compaction without content marks a place only."""
    turn = decode(USER, {"type": "context_compaction"})
    assert (turn.messages, turn.ignored) == ([USER], ("input[1]",))


def test_include_values():
    """Every value of the SDK is accepted; an unknown one is named."""
    assert set(get_args(ResponseIncludable)) == INCLUDES
    assert decode(USER, include=sorted(INCLUDES)).ignored == ()
    assert decode(USER, include=["reasoning.encrypted_content", "new"]).ignored == ("include[1]",)
    with pytest.raises(RequestError) as raised:
        decode(USER, include=[5])
    assert raised.value.param == "include[0]"


NOT_SENT = (
    "response.audio.",  # there is no audio in this API
    "response.code_interpreter_call", "response.file_search_call", "response.image_generation_call",
    # tools of OpenAI's
    "response.shell_call",  # a tool that is not offered to a Qwen model
    "response.reasoning_text.",  # reasoning is its item's summary
    "response.mcp_list_tools.failed",  # a server that cannot be reached is an error of the request
)  # fmt: skip
"""Beginnings of the names of events that no response has."""
EVENTS = [
    ServerToolList("s", [{"name": "f", "description": "", "input_schema": {}}]),
    ReasoningDelta("hm"), SearchInfo({"search_results": [{"index": 1, "title": "A", "url": "https://a.test/"}]}),
    TextDelta("a [ref_1]"), RefusalDelta("no"), CompactionDelta(), CompactionDone("sealed"),
    ToolCallStart(0, "c1", "g"), ToolCallArgumentsDelta(0, "{}"), ToolCallStart(1, "c2", "p", custom=True),
    ToolCallArgumentsDelta(1, "x"), ServerToolCall("s1", "clock", "{}"), ServerToolResult("s1", "clock", "noon", True, 0.1),
    ServerToolCall("s2", "clock", "{}"), ServerToolResult("s2", "clock", "noon", False, 0.1),
]  # fmt: skip


def test_every_event_of_the_sdk_is_sent_or_not_on_purpose():
    """The events of all endings of a response, and those that no response has, are the SDK's."""
    tools = [TOOL, {"type": "custom", "name": "p"}, {"type": "web_search"}]
    sent = {"response.queued"}  # only in the background
    failed = StreamFailed(UpstreamError("broken"))
    for end in (ChoiceFinished("stop"), ChoiceFinished("length"), failed):
        text, _ = encode(turn(tools=tools), *EVENTS, end)
        sent |= {event["type"] for event in read(text)}
    known = type_names(ResponseStreamEvent)
    assert sent <= known
    assert not [name for name in sent if name.startswith(NOT_SENT)]
    assert not [name for name in known - sent if not name.startswith(NOT_SENT)]
    assert all(any(name.startswith(start) for name in known) for start in NOT_SENT)
