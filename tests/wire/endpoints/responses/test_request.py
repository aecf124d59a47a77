"""The Responses API's requests: fields, items and tools as a turn."""

import pytest
from openai.types.responses import Response

from qproxy.wire.endpoints import responses
from qproxy.wire.endpoints.responses import input_items
from qproxy.wire.errors import RequestError
from qproxy.wire.events import ChoiceFinished, ContextPolicy, Event, ToolCallArgumentsDelta, ToolCallStart
from tests.defaults import DECODE_LIMITS
from tests.openai_types import judge

ID = "resp_" + "0" * 24
FUNCTION = {"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": True}
CALL = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": '{"a":1}'}
OUTPUT = {"type": "function_call_output", "call_id": "c1", "output": "42"}
USER = {"role": "user", "content": "hi"}
CHAT_USER = {"role": "user", "content": "hi"}
CHAT_CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}
CHAT_CALLS = {"role": "assistant", "content": None, "tool_calls": [CHAT_CALL]}
CHAT_OUTPUT = {"role": "tool", "tool_call_id": "c1", "content": "42"}
SAID = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "yes"}]}
THOUGHT = {"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]}


def decode(**fields):
    return responses.decode(
        {"model": "qwen-plus", "input": "hi", **fields},
        id=ID,
        created=1700000000,
        **DECODE_LIMITS,
    )


CONVERSATIONS = {
    "a string": ("hi", [CHAT_USER]),
    "a message without a type": ([USER], [CHAT_USER]),
    "a message with parts": ([{"role": "user", "content": [{"type": "input_text", "text": "hi"}]}], [CHAT_USER]),
    "two texts of a user stay two": (
        [{"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]}],
        [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}],
    ),
    "system and developer": (
        [{"role": "system", "content": "s"}, {"role": "developer", "content": "d"}, USER],
        [{"role": "system", "content": "s"}, {"role": "developer", "content": "d"}, CHAT_USER],
    ),
    "a picture": (
        [{"role": "user", "content": [{"type": "input_text", "text": "hi"}, {"type": "input_image", "image_url": "data:x", "detail": "low"}]}],
        [{"role": "user", "content": [{"type": "text", "text": "hi"}, {"type": "image_url", "image_url": {"url": "data:x", "detail": "low"}}]}],
    ),
    "a file": (
        [{"role": "user", "content": [{"type": "input_file", "filename": "a.pdf", "file_data": "data:y"}]}],
        [{"role": "user", "content": [{"type": "file", "file": {"filename": "a.pdf", "file_data": "data:y"}}]}],
    ),
    "a call and its output": ([USER, CALL, OUTPUT], [CHAT_USER, CHAT_CALLS, CHAT_OUTPUT]),
    "a thought, a text and a call are one message": (
        [USER, THOUGHT, SAID, CALL, OUTPUT],
        [CHAT_USER, {**CHAT_CALLS, "content": "yes", "reasoning_content": "hm"}, CHAT_OUTPUT],
    ),
    "calls in parallel are one message": (
        [USER, CALL, {**CALL, "call_id": "c2"}, OUTPUT, {**OUTPUT, "call_id": "c2"}],
        [CHAT_USER, {**CHAT_CALLS, "tool_calls": [CHAT_CALL, {**CHAT_CALL, "id": "c2"}]}, CHAT_OUTPUT, {**CHAT_OUTPUT, "tool_call_id": "c2"}],
    ),
    "calls one after the other are two": ([CALL, OUTPUT, CALL, OUTPUT], [CHAT_CALLS, CHAT_OUTPUT] * 2),
    "texts one after the other are two": ([SAID, SAID], [{"role": "assistant", "content": "yes"}] * 2),
    "a text after a call stays before the result": ([CALL, SAID, OUTPUT], [{**CHAT_CALLS, "content": "yes"}, CHAT_OUTPUT]),
    "a thought that led to nothing": ([THOUGHT, USER], [CHAT_USER]),
    "a refusal": ([{"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]}], [{"role": "assistant", "content": "no"}]),
    "output in parts": ([CALL, {**OUTPUT, "output": [{"type": "input_text", "text": "42"}]}], [CHAT_CALLS, CHAT_OUTPUT]),
    "output with a picture": (
        [CALL, {**OUTPUT, "output": [{"type": "input_image", "image_url": "u"}]}],
        [CHAT_CALLS, {**CHAT_OUTPUT, "content": [{"type": "image_url", "image_url": {"url": "u"}}]}],
    ),
    "output that is an object": ([CALL, {**OUTPUT, "output": {"ok": True}}], [CHAT_CALLS, {**CHAT_OUTPUT, "content": '{"ok":true}'}]),
    "arguments that are an object": ([{**CALL, "arguments": {"a": 1}}], [CHAT_CALLS]),
    "a custom call": (
        [{"type": "custom_tool_call", "call_id": "c1", "name": "sql", "input": "select 1"}, {**OUTPUT, "type": "custom_tool_call_output"}],
        [{**CHAT_CALLS, "tool_calls": [{"id": "c1", "type": "custom", "custom": {"name": "sql", "input": "select 1"}}]}, CHAT_OUTPUT],
    ),
    "a tool that this server ran": (
        [{"type": "mcp_call", "id": "mcp_1", "server_label": "web", "name": "get", "arguments": "{}", "output": "page"}, SAID],
        [
            {**CHAT_CALLS, "tool_calls": [{"id": "mcp_1", "type": "function", "function": {"name": "web__get", "arguments": "{}"}}]},
            {"role": "tool", "tool_call_id": "mcp_1", "content": "page"},
            {"role": "assistant", "content": "yes"},
        ],
    ),
    "reasoning text": (
        [{"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]}, SAID],
        [{"role": "assistant", "content": "yes", "reasoning_content": "hm"}],
    ),
    "reasoning that was sealed": (
        [{"type": "reasoning", "summary": [], "encrypted_content": input_items.encode_reasoning("hm\ud83c")}, SAID],
        [{"role": "assistant", "content": "yes", "reasoning_content": "hm\ud83c"}],
    ),
    "reasoning sealed elsewhere": ([{"type": "reasoning", "summary": [], "encrypted_content": "gAAAA"}, SAID], [{"role": "assistant", "content": "yes", "encrypted_content": "gAAAA"}]),
}  # fmt: skip


@pytest.mark.parametrize(("value", "messages"), CONVERSATIONS.values(), ids=CONVERSATIONS)
def test_items_become_messages(value, messages):
    """Each kind of item becomes a chat message in its place."""
    assert decode(input=value).messages == messages


def test_replayed_items_without_a_counterpart_are_named():
    """Items of kinds without a counterpart at Qwen are dropped without an error."""
    turn = decode(input=[{"type": "web_search_call", "id": "ws_1"}, USER, {"type": "new_call"}])
    assert turn.messages == [CHAT_USER]
    assert turn.ignored == ("input[0]", "input[2]")


def test_instructions_come_first_and_are_not_stored():
    """Instructions are a system message before the conversation, and no item of it."""
    before = [
        {"type": "message", "id": "msg_0", "role": "user", "content": [{"type": "input_text", "text": "a"}]}
    ]
    turn = responses.decode(
        {"model": "m", "input": "hi", "instructions": "be brief"},
        id=ID,
        created=0,
        before=before,
        **DECODE_LIMITS,
    )
    assert [message["content"] for message in turn.messages] == ["be brief", "a", "hi"]
    assert len(responses.request_of(turn).items) == 1


def test_references_to_stored_items():
    """A reference becomes its item; one to an item of the same conversation is not repeated."""
    body = {"input": [{"id": "msg_1"}, {"type": "item_reference", "id": "fc_2"}, USER]}
    assert responses.referenced_ids(body | {"previous_response_id": "resp_1"}) == (
        "resp_1",
        ["msg_1", "fc_2"],
    )
    known = {"fc_2": {"id": "fc_2", **CALL}}
    before = [{"id": "msg_1", **SAID}]
    turn = responses.decode(
        {"model": "m", **body},
        id=ID,
        created=0,
        before=before,
        known=known,
        **DECODE_LIMITS,
    )
    assert turn.messages == [{"role": "assistant", "content": "yes", "tool_calls": [CHAT_CALL]}, CHAT_USER]


@pytest.mark.parametrize("body", [[], {"input": 1}, {"input": [1, {"id": 1}], "previous_response_id": 2}])
def test_references_of_an_invalid_body(body):
    """A body that decode rejects has no references."""
    assert responses.referenced_ids(body) == (None, [])


def test_a_missing_item_is_a_404():
    """A reference to an item that is not stored is rejected as OpenAI does."""
    with pytest.raises(RequestError, match="Items are not persisted") as caught:
        decode(input=[{"type": "item_reference", "id": "rs_1"}])
    assert (caught.value.status, caught.value.param, caught.value.code) == (404, "input", None)


def test_item_ids_contain_the_response():
    """Items without an id get one from which the response can be derived; those with one keep it."""
    own = responses.request_of(decode(input=[USER, {**CALL, "id": "fc_mine"}, OUTPUT])).items
    assert [responses.response_of(item["id"]) for item in own] == [ID, None, ID]
    assert responses.response_of("msg_0123") is None


ALL_QWEN_PARAMS = dict.fromkeys(sorted(DECODE_LIMITS["qwen_params"]), 1)
PARAMS = {
    "zero values": ({"temperature": 0, "top_p": 0.0, "enable_thinking": False},
        {"temperature": 0, "top_p": 0.0, "enable_thinking": False}),
    "output limit": ({"max_output_tokens": 9.0}, {"max_completion_tokens": 9}),
    "effort": ({"reasoning": {"effort": "low", "summary": "auto"}}, {"reasoning_effort": "low"}),
    "text": ({"text": {"format": {"type": "text"}}}, {}),
    "verbosity": ({"text": {"verbosity": "low"}}, {"verbosity": "low"}),
    "JSON": ({"text": {"format": {"type": "json_object"}}}, {"response_format": {"type": "json_object"}}),
    "schema": (
        {"text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"},
            "strict": True}}},
        {"response_format": {"type": "json_schema",
            "json_schema": {"name": "n", "schema": {"type": "object"}, "strict": True}}},
    ),
    "log probabilities": ({"top_logprobs": 2}, {"logprobs": True, "top_logprobs": 2}),
    "log probabilities by include": ({"include": ["message.output_text.logprobs"]},
        {"logprobs": True, "top_logprobs": 0}),
    "all of Qwen's own": (ALL_QWEN_PARAMS, ALL_QWEN_PARAMS),
    "parallel": ({"parallel_tool_calls": False}, {"parallel_tool_calls": False}),
    "ours to keep": ({"store": False, "metadata": {"a": "b"}, "include": [], "stream_options": {},
        "tools": []}, {}),
}  # fmt: skip


@pytest.mark.parametrize(("fields", "params"), PARAMS.values(), ids=PARAMS)
def test_fields_become_chat_parameters(fields, params):
    """Each field has chat's name and shape in the turn."""
    turn = decode(**fields)
    assert turn.params == params
    assert turn.ignored == ()


def test_unsupported_fields_are_named():
    """Unknown and unsupported fields are dropped and named."""
    turn = decode(client_metadata={"a": 1}, truncation="auto", max_tool_calls=3, moderation="auto", seed=None)
    assert turn.params == {}
    assert turn.ignored == ("client_metadata", "moderation")
    assert turn.max_tool_calls == 3
    assert turn.context == ContextPolicy(truncates=True)


CUSTOM = {"type": "custom", "name": "p", "format": {"type": "grammar", "syntax": "lark", "definition": "x"}}
CHOICES = {
    "not said": (None, None, "auto"),
    "a word": ("required", "required", "required"),
    "a function": ({"type": "function", "name": "f"}, {"type": "function", "function": {"name": "f"}},
        {"type": "function", "name": "f"}),
    "a custom tool": ({"type": "custom", "name": "p"}, {"type": "custom", "custom": {"name": "p"}},
        {"type": "custom", "name": "p"}),
    "elsewhere": ({"type": "file_search"}, "auto", "auto"),
    "a tool of an MCP server": ({"type": "mcp", "server_label": "w", "name": "g"}, {"type": "function",
        "function": {"name": "w__g"}}, {"type": "mcp", "server_label": "w", "name": "g"}),
    "an MCP server": ({"type": "mcp", "server_label": "w"}, "auto", "auto"),
}  # fmt: skip


@pytest.mark.parametrize(("choice", "read", "echo"), CHOICES.values(), ids=CHOICES)
def test_tools_and_choices(choice, read, echo):
    """Functions, custom tools and MCP servers are offered, other kinds are named; the response shows them
    flat."""
    offered = [FUNCTION, CUSTOM, {"type": "file_search"}, {"type": "mcp", "server_label": "w"}]
    turn = decode(tools=offered, tool_choice=choice)
    assert [tool["type"] for tool in turn.tools] == ["function", "custom"]
    assert turn.tools[0]["function"] == {key: FUNCTION[key] for key in ("name", "parameters", "strict")}
    assert [request.server for request in turn.server_tools] == ["w"]
    assert turn.ignored[0] == "tools[2]"
    assert turn.tool_choice == read
    shown = responses.request_of(turn).echo
    assert shown["tool_choice"] == echo
    assert shown["tools"] == [FUNCTION, CUSTOM, {"type": "mcp", "server_label": "w"}]


def test_allowed_tools():
    """Only the allowed tools are offered."""
    tool_choice = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "f"}]}
    turn = decode(tools=[FUNCTION, CUSTOM], tool_choice=tool_choice)
    assert turn.tool_names() == ["f"]
    assert len(turn.tools) == 1
    assert turn.tool_choice == "required"
    assert responses.request_of(turn).echo["tool_choice"] == tool_choice


GROUP = {
    "type": "namespace", "name": "mcp__web", "description": "d",
    "tools": [{**FUNCTION, "name": "get"}, {"type": "web_search"}, {**CUSTOM, "name": "put"}],
}  # fmt: skip


def test_tools_in_groups():
    """A tool of a group is offered under one joined name, and its call is split into both names."""
    turn = decode(tools=[FUNCTION, GROUP, {"type": "namespace"}])
    assert [tool[tool["type"]]["name"] for tool in turn.tools] == ["f", "mcp__web__get", "mcp__web__put"]
    assert turn.ignored == ("tools[2]", "tools[1].tools[1]")
    assert responses.request_of(turn).echo["tools"] == [
        FUNCTION,
        {**GROUP, "tools": [GROUP["tools"][0], GROUP["tools"][2]]},
    ]
    events: list[Event] = [
        ToolCallStart(0, "c1", "mcp__web__get"),
        ToolCallArgumentsDelta(0, "{}"),
        ChoiceFinished("tool_calls"),
    ]
    response = responses.response(turn, events)
    judge(Response, response)
    call = response["output"][0]
    assert (call["namespace"], call["name"]) == ("mcp__web", "get")
    again = decode(input=[call]).messages[0]["tool_calls"][0]
    assert again["function"]["name"] == "mcp__web__get"


def part(value, role="user"):
    return {"input": [{"role": role, "content": [value]}]}


WRONG = {
    "no input": ({"input": None}, "input", "Missing"),
    "input a number": ({"input": 1}, "input", "array of items"),
    "input empty": ({"input": []}, "input", "no message"),
    "item a string": ({"input": ["hi"]}, "input[0]", "an object"),
    "type a number": ({"input": [{"type": 1}]}, "input[0].type", "a string"),
    "no role": ({"input": [{"content": "x"}]}, "input[0].role", "Missing"),
    "odd role": ({"input": [{"role": "god", "content": "x"}]}, "input[0].role", "god"),
    "no content": ({"input": [{"role": "user"}]}, "input[0].content", "Missing"),
    "content a number": ({"input": [{"role": "user", "content": 1}]}, "input[0].content", "content parts"),
    "part a number": (part(1), "input[0].content[0]", "an object"),
    "part without a type": (part({"text": "x"}), "input[0].content[0].type", "Missing"),
    "odd part": (part({"type": "smell"}), "input[0].content[0].type", "smell"),
    "a picture said by the model": (part({"type": "input_image", "image_url": "u"}, "assistant"),
        "input[0].content[0].type", "output_text"),
    "text a number": (part({"type": "input_text", "text": 1}), "input[0].content[0].text", "a string"),
    "a picture by id": (part({"type": "input_image", "file_id": "f"}), "input[0].content[0].file_id",
        "not resolved here"),
    "a picture without url": (part({"type": "input_image"}), "input[0].content[0].image_url", "Missing"),
    "a file by id": (part({"type": "input_file", "file_id": "f"}), "input[0].content[0].file_id",
        "not resolved here"),
    "a file by url": (part({"type": "input_file", "file_url": "f"}), "input[0].content[0].file_url",
        "not fetched"),
    "audio without data": (part({"type": "input_audio", "input_audio": {}}),
        "input[0].content[0].input_audio.data", "a string"),
    "call without id": ({"input": [{"type": "function_call", "name": "f", "arguments": ""}]},
        "input[0].call_id", "Missing"),
    "output without output": ({"input": [{"type": "function_call_output", "call_id": "c"}]},
        "input[0].output", "Missing"),
    "reference without id": ({"input": [{"type": "item_reference"}]}, "input[0].id", "a string"),
    "background without a store": ({"background": True}, "background", "store_responses"),
    "background of another type": ({"background": 1}, "background", "a boolean"),
    "conversation": ({"conversation": 5}, "conversation", "a string"),
    "conversation without an id": ({"conversation": {}}, "conversation.id", "Missing"),
    "two conversations": (
        {"conversation": "conv_1", "previous_response_id": "resp_1"}, "conversation", "Mutually exclusive"
    ),
    "prompt": ({"prompt": {"id": "p"}}, "prompt", "Stored prompts"),
    "odd effort": ({"reasoning": {"effort": "heroic"}}, "reasoning.effort", "heroic"),
    "odd summary": ({"reasoning": {"summary": "long"}}, "reasoning.summary", "long"),
    "odd format": ({"text": {"format": {"type": "xml"}}}, "text.format.type", "xml"),
    "a schema without one": ({"text": {"format": {"type": "json_schema", "name": "n"}}}, "text.format.schema",
        "an object"),
    "too much metadata": ({"metadata": {str(n): "" for n in range(17)}}, "metadata", "16 pairs"),
    "a long key": ({"metadata": {"k" * 65: ""}}, "metadata." + "k" * 64, "64 characters"),
    "a long value": ({"metadata": {"k": "v" * 513}}, "metadata.k", "512"),
    "metadata a number": ({"metadata": {"k": 1}}, "metadata.k", "a string"),
    "tool without a name": ({"tools": [{"type": "function"}]}, "tools[0].name", "needs a name"),
    "a tool of a group": ({"tools": [{**GROUP, "tools": [{**FUNCTION, "parameters": 1}]}]},
        "tools[0].tools[0].parameters", "a JSON schema"),
    "an MCP server of the client's": ({"tools": [{"type": "mcp", "server_label": "x",
        "server_url": "ftp://x"}]}, "tools[0].server_url", "http(s) URL"),
    "a choice of an unknown function": ({"tool_choice": {"type": "function", "name": "g"}}, "tool_choice",
        "not among"),
    "max_output_tokens 0": ({"max_output_tokens": 0}, "max_output_tokens", "from 1"),
}  # fmt: skip


@pytest.mark.parametrize(("fields", "param", "message"), WRONG.values(), ids=WRONG)
def test_an_invalid_request_names_its_field(fields, param, message):
    """An invalid field is a 400 whose param and message name the path."""
    with pytest.raises(RequestError) as caught:
        decode(**fields)
    assert caught.value.status == 400
    assert caught.value.param == param
    assert message in caught.value.message


def test_too_many_messages_are_rejected():
    """The operator sets the limit on messages."""
    with pytest.raises(RequestError, match="limit is 1"):
        responses.decode(
            {"model": "m", "input": [USER, USER]}, id=ID, created=0, **{**DECODE_LIMITS, "max_messages": 1}
        )


PAGES = {
    "the newest first": ({}, ["i4", "i3", "i2", "i1", "i0"], False),
    "the oldest first": ({"order": "asc", "limit": "2"}, ["i0", "i1"], True),
    "after": ({"order": "asc", "limit": "2", "after": "i2"}, ["i3", "i4"], False),
    "after the last": ({"after": "i0"}, [], False),
}


@pytest.mark.parametrize(("query", "ids", "more"), PAGES.values(), ids=PAGES)
def test_pages(query, ids, more):
    """A page is a slice of the items with its ends named."""
    page = responses.list_page([{"id": f"i{n}"} for n in range(5)], **query)
    assert [item["id"] for item in page["data"]] == ids
    assert page["has_more"] is more
    assert (page["first_id"], page["last_id"]) == ((ids[0], ids[-1]) if ids else ("", ""))


@pytest.mark.parametrize(
    ("query", "param"), [({"limit": "0"}, "limit"), ({"limit": "x"}, "limit"), ({"after": "z"}, "after"),
        ({"order": "up"}, "order")]
)  # fmt: skip
def test_invalid_pages(query, param):
    """An invalid query names its parameter."""
    with pytest.raises(RequestError) as caught:
        responses.list_page([], **query)
    assert caught.value.param == param
