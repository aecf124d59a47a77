"""Tools of MCP servers in the Responses API: their list, and calls that the client approves."""

from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from openai.types.responses import Response, ResponseStreamEvent

from qproxy.tools import ToolError, functions
from tests.helpers import HELLO, MODEL, world
from tests.integration.test_responses import stream
from tests.openai_types import judge
from tests.relay.test_tool_loop import add, calling, saying
from tests.wire.endpoints.responses.test_encoder import read

PATH = "/v1/responses"
CONTINUED = ["user", "assistant", "tool", "assistant", "user"]
CALL, ANSWER = calling(("docs__add", {"a": 2, "b": 3})), saying("Five.")


class Source:
    """A connected MCP server, as the registry sees it."""

    label = "docs"
    state = "connected"

    def __init__(self, *names):
        tool = functions.as_tool(add)
        self.tools = [
            replace(tool, name=f"docs__{name}", remote_name=name, server="docs", policy="on request")
            for name in names
        ]

    async def run(self):
        """Be connected already."""

    async def wait_ready(self):
        """Be ready already."""


@asynccontextmanager
async def documented(*names):
    """Serve an app that is connected to a server with these tools."""
    async with world() as it:
        it.server.state.tool_runtime.registry.sources = [Source(*(names or ("add",)))]
        yield it


def mcp(approval=None, **fields):
    asked = {} if approval is None else {"require_approval": approval}
    return {"type": "mcp", "server_label": "docs", **asked, **fields}


def ask(text="2 and 3?", approval=None, **fields):
    return {"model": MODEL, "input": text, "tools": [mcp(approval)], **fields}


def kinds(body):
    return [item["type"] for item in body["output"]]


def answer(id, approve=True, **fields):
    return {"type": "mcp_approval_response", "approval_request_id": id, "approve": approve, **fields}


def messages(it):
    return it.emulator.requests[-1].body["messages"]


async def test_tools_are_listed_once():
    """The first response of a conversation lists the server's tools, whole and with OpenAI's events; the next
    one does not, whether the client continues it or sends its items."""
    async with documented() as it:
        it.emulator.script(CALL, ANSWER, *[saying("yes")] * 3)
        _, _, first = await it.post(ask(approval="never"), PATH)
        judge(Response, first)
        assert kinds(first) == ["mcp_list_tools", "mcp_call", "message"]
        (tool,) = first["output"][0]["tools"]
        assert (tool["name"], set(tool["input_schema"]["properties"])) == ("add", {"a", "b"})
        _, _, second = await it.post(ask(previous_response_id=first["id"]), PATH)
        assert kinds(second) == ["message"]
        assert [message["role"] for message in messages(it)] == [
            "user",
            "assistant",
            "tool",
            "assistant",
            "user",
        ]
        replayed = [*first["output"], {"role": "user", "content": "And?"}]
        _, headers, third = await it.post(ask(replayed), PATH)
        assert kinds(third) == ["message"]
        assert "x-qproxy-ignored-params" not in headers
        _, text = await stream(it, ask())
    events = read(text)
    for event in events:
        judge(ResponseStreamEvent, event)
    assert [event["type"] for event in events][2:6] == [
        "response.output_item.added",
        "response.mcp_list_tools.in_progress",
        "response.mcp_list_tools.completed",
        "response.output_item.done",
    ]


async def test_an_approved_call_runs():
    """A call waits for its approval, and then runs before the model continues."""
    async with documented() as it:
        it.emulator.script(CALL, ANSWER)
        _, _, first = await it.post(ask(approval="always"), PATH)
        judge(Response, first)
        assert (first["status"], kinds(first)) == ("completed", ["mcp_list_tools", "mcp_approval_request"])
        request = first["output"][1]
        assert (request["server_label"], request["name"]) == ("docs", "add")
        assert request["arguments"] == '{"a": 2, "b": 3}'
        again = ask([answer(request["id"])], approval="always", previous_response_id=first["id"])
        _, _, second = await it.post(again, PATH)
        judge(Response, second)
        assert kinds(second) == ["mcp_call", "message"]
        call = second["output"][0]
        assert (call["approval_request_id"], call["output"]) == (request["id"], "5")
        assert [message["role"] for message in messages(it)] == ["user", "assistant", "tool"]
        assert messages(it)[-1]["content"] == "5"
        it.emulator.script(saying("Sure."))
        _, _, third = await it.post(ask("Sure?", previous_response_id=second["id"]), PATH)
        assert kinds(third) == ["message"]
        assert [message["role"] for message in messages(it)] == [
            "user",
            "assistant",
            "tool",
            "assistant",
            "user",
        ]


async def test_an_approved_call_is_streamed():
    """The call's events come before those of the message, and all are OpenAI's."""
    async with documented() as it:
        it.emulator.script(CALL, ANSWER)
        _, text = await stream(it, ask(approval="always"))
        first = read(text)
        items = first[-1]["response"]["output"]
        replayed = [{"role": "user", "content": "2 and 3?"}, *items, answer(items[-1]["id"])]
        _, text = await stream(it, ask(replayed, approval="always", store=False))
        second = read(text)
    for event in (*first, *second):
        judge(ResponseStreamEvent, event)
    assert [item["type"] for item in second[-1]["response"]["output"]] == ["mcp_call", "message"]


async def test_a_denied_call_does_not_run():
    """The model gets the denial, with the reason, as the call's result."""
    async with documented() as it:
        it.emulator.script(CALL, ANSWER)
        _, _, first = await it.post(ask(approval="always"), PATH)
        denial = answer(first["output"][1]["id"], approve=False, reason="Too dear.")
        _, _, second = await it.post(ask([denial], previous_response_id=first["id"]), PATH)
        assert kinds(second) == ["message"]
        assert messages(it)[-1]["content"] == "The user denied this call. Too dear."


APPROVALS = {
    "unset": (None, False),
    "never": ("never", False),
    "always": ("always", True),
    "always this": ({"always": {"tool_names": ["add"]}}, True),
    "always another": ({"always": {"tool_names": ["other"]}}, False),
    "never this": ({"never": {"tool_names": ["add"]}}, False),
    "never another": ({"never": {"tool_names": ["other"]}}, True),
}


@pytest.mark.parametrize(("approval", "waits"), APPROVALS.values(), ids=APPROVALS)
async def test_which_calls_wait(approval, waits):
    """`require_approval` is one word for all tools, or lists of names."""
    async with documented() as it:
        it.emulator.script(CALL, ANSWER)
        _, _, body = await it.post(ask(approval=approval), PATH)
        assert ("mcp_approval_request" in kinds(body)) is waits


async def test_other_calls_of_the_round_run():
    """A round with a call that waits and one that does not runs the other one."""
    async with documented("add", "sum") as it:
        it.emulator.script(calling(("docs__add", {"a": 1, "b": 1}), ("docs__sum", {"a": 2, "b": 2})))
        _, _, body = await it.post(ask(approval={"always": {"tool_names": ["add"]}}), PATH)
        assert kinds(body) == ["mcp_list_tools", "mcp_call", "mcp_approval_request"]
        assert body["output"][1]["output"] == "4"


async def test_a_tool_that_is_gone():
    """An approved call of a tool that the request no longer has is not run, and the model is told why."""
    async with documented() as it:
        it.emulator.script(CALL, ANSWER)
        _, _, first = await it.post(ask(approval="always"), PATH)
        approval = answer(first["output"][1]["id"])
        body = {"model": MODEL, "input": [approval], "previous_response_id": first["id"]}
        status, _, _ = await it.post(body, PATH)
        assert (status, messages(it)[-1]["content"][:6]) == (200, "Error:")


WRONG = {
    "an unknown request": (answer("mcpr_x"), "input"),
    "no answer": ({"type": "mcp_approval_response", "approval_request_id": "x"}, "input[0].approve"),
    "no request": ({"type": "mcp_approval_response", "approve": True}, "input[0].approval_request_id"),
}


@pytest.mark.parametrize(("item", "param"), WRONG.values(), ids=WRONG)
async def test_wrong_answers(item, param):
    """An answer that is about no request is a 400."""
    async with documented() as it:
        status, _, body = await it.post(ask([item]), PATH)
        assert (status, body["error"]["param"]) == (400, param)


async def test_a_wrong_policy():
    """A `require_approval` that is neither word nor object is a 400."""
    async with documented() as it:
        status, _, body = await it.post(ask(approval="sometimes"), PATH)
        assert (status, body["error"]["param"]) == (400, "tools[0].require_approval")


async def test_chat_clients_see_nothing():
    """A chat client gets neither list nor request, and the tool runs."""
    async with documented() as it:
        it.emulator.script(CALL, ANSWER)
        _, _, body = await it.post({**HELLO, "tools": [mcp()]})
        assert body["choices"][0]["message"]["content"] == "Five."


async def test_a_failed_approved_call_is_an_item():
    """An approved call that fails is a failed item with its error."""
    async with documented() as it:

        async def fail(arguments):
            raise ToolError("It is closed.")

        (source,) = it.server.state.tool_runtime.registry.sources
        source.tools = [replace(source.tools[0], run=fail)]
        it.emulator.script(CALL, ANSWER)
        _, _, first = await it.post(ask(approval="always"), PATH)
        approval = answer(first["output"][1]["id"])
        _, _, body = await it.post(ask([approval], previous_response_id=first["id"]), PATH)
        judge(Response, body)
        assert (body["output"][0]["status"], body["output"][0]["output"]) == ("failed", None)
