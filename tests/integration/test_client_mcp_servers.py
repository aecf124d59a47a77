"""MCP servers that clients name by their address, where the operator allows their hosts."""

import json
from contextlib import asynccontextmanager

import hypercorn.trio
import pytest
import trio
from hypercorn.config import Config as HypercornConfig
from openai.types.responses import Response

from qproxy.config.tools import ToolRuleConfig
from qproxy.emulator import PauseStep, ScriptedReply
from tests.disconnects import until
from tests.helpers import HELLO, MODEL, world
from tests.openai_types import judge
from tests.relay.test_tool_loop import calling, saying

PATH = "/v1/responses"
RESULTS = {
    "initialize": {
        "protocolVersion": "2025-06-18",
        "capabilities": {"tools": {}},
        "serverInfo": {"name": "theirs", "version": "1"},
    },
    "tools/list": {"tools": [{"name": "hello", "inputSchema": {"type": "object"}}]},
    "tools/call": {"content": [{"type": "text", "text": "Hi there."}], "isError": False},
}


class TheirServer:
    """An MCP server over HTTP, which keeps the headers of its requests."""

    def __init__(self):
        self.seen = []

    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan":
            for word in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{word}.complete"})
            return
        body = b""
        while (message := await receive())["type"] == "http.request":
            body += message["body"]
            if not message["more_body"]:
                break
        asked = json.loads(body) if body else {}
        self.seen.append(dict(scope["headers"]))
        status, reply = (200, b"") if scope["method"] == "POST" else (405, b"")
        if "id" in asked:
            known = asked.get("method") in RESULTS
            outcome = (
                {"result": RESULTS[asked["method"]]}
                if known
                else {"error": {"code": -32601, "message": "no"}}
            )
            reply = json.dumps({"jsonrpc": "2.0", "id": asked["id"], **outcome}).encode()
        elif status == 200:
            status = 202
        head = {
            "type": "http.response.start",
            "status": status,
            "headers": [(b"content-type", b"application/json")],
        }
        await send(head)
        await send({"type": "http.response.body", "body": reply})


@asynccontextmanager
async def theirs(**settings):
    """Yield a world, a client's server, and its tool as a request declares it."""
    app, config = TheirServer(), HypercornConfig()
    config.bind = ["127.0.0.1:0"]
    config.accesslog = config.errorlog = None
    async with trio.open_nursery() as nursery:
        (url,) = await nursery.start(
            lambda task_status: hypercorn.trio.serve(app, config, task_status=task_status)
        )
        settings = {"client_mcp_hosts": ["127.0.0.1:*"], "client_mcp_private": True, **settings}
        async with world(**settings) as it:
            yield it, app, {"type": "mcp", "server_label": "theirs", "server_url": f"{url}/mcp"}
        nursery.cancel_scope.cancel()


def ask(*tools, **fields):
    return {"model": MODEL, "input": "Say hello", "tools": list(tools), **fields}


async def test_a_clients_server(caplog):
    """Its tools are listed and called for one request, with the client's headers, which no log shows."""
    async with theirs() as (it, app, tool):
        it.emulator.script(calling(("theirs__hello", {})), saying("Done."))
        secret = {"authorization": "token-of-theirs", "headers": {"X-Tenant": "a"}}
        status, _, body = await it.post(ask({**tool, **secret}), PATH)
        judge(Response, body)
        assert status == 200
        listed, call, _ = body["output"]
        assert (listed["type"], listed["tools"][0]["name"]) == ("mcp_list_tools", "hello")
        assert (call["server_label"], call["output"]) == ("theirs", "Hi there.")
        assert all(seen[b"authorization"] == b"Bearer token-of-theirs" for seen in app.seen)
        assert all(seen[b"x-tenant"] == b"a" for seen in app.seen)
        assert "token-of-theirs" not in json.dumps(body)
        assert "token-of-theirs" not in caplog.text


async def test_calls_may_need_an_approval():
    """A client's server has approvals too; the next request names it again."""
    async with theirs() as (it, _, tool):
        it.emulator.script(calling(("theirs__hello", {})), saying("Done."))
        tool = {**tool, "require_approval": "always"}
        _, _, first = await it.post(ask(tool), PATH)
        approval = {
            "type": "mcp_approval_response",
            "approval_request_id": first["output"][-1]["id"],
            "approve": True,
        }
        _, _, second = await it.post(ask(tool, input=[approval], previous_response_id=first["id"]), PATH)
        assert [item["type"] for item in second["output"]] == ["mcp_call", "message"]
        assert second["output"][0]["output"] == "Hi there."


async def test_the_connection_ends_with_the_request():
    """A client that leaves takes its connection along."""
    async with theirs() as (it, _, tool):
        it.emulator.script(ScriptedReply((PauseStep(1000),)))
        body = json.dumps(ask(tool)).encode()
        fields = [(b"content-type", b"application/json")]
        async with trio.open_nursery() as nursery:

            async def leave():
                async with it.client.request("POST", PATH, headers=fields, body=body) as response:
                    await response.read()

            nursery.start_soon(leave)
            await until(lambda: it.emulator.requests)
            nursery.cancel_scope.cancel()
        await until(lambda: not it.server.state.counters.in_flight)
        assert it.sound()


async def test_chat_may_name_one_too():
    """The same tool of a chat request is connected to as well."""
    async with theirs() as (it, _, tool):
        it.emulator.script(calling(("theirs__hello", {})), saying("Done."))
        _, _, body = await it.post({**HELLO, "tools": [tool]})
        assert body["choices"][0]["message"]["content"] == "Done."


REFUSED = {
    "no host is allowed": ({"client_mcp_hosts": []}, {}, "operator declared"),
    "another host": ({"client_mcp_hosts": ["*.example.com"]}, {}, "does not allow the host"),
    "another port": ({"client_mcp_hosts": ["127.0.0.1"]}, {}, "does not allow the host"),
    "plain HTTP": ({"client_mcp_private": False}, {}, "https"),
    "a wrong label": ({}, {"server_label": "a b"}, "label"),
    "a connector": ({}, {"connector_id": "connector_gmail"}, "label or address"),
    "wrong headers": ({}, {"headers": {"a b": "c"}}, "headers"),
    "a line break": ({}, {"headers": {"a": "b\r\nc: d"}}, "headers"),
    "a user name": ({}, {"server_url": "http://a:b@127.0.0.1/mcp"}, "user name"),
}


@pytest.mark.parametrize(("settings", "fields", "words"), REFUSED.values(), ids=REFUSED)
async def test_what_is_refused(settings, fields, words):
    """What the operator does not allow is a 400 before any connection."""
    async with theirs(**settings) as (it, app, tool):
        status, _, body = await it.post(ask({**tool, **fields}), PATH)
        assert (status, app.seen) == (400, [])
        assert words in body["error"]["message"]


async def test_a_private_address_is_refused():
    """Over TLS a host is connected to only at a public address."""
    async with world(client_mcp_hosts=["localhost"]) as it:
        tool = {"type": "mcp", "server_label": "s", "server_url": "https://localhost/mcp"}
        status, _, body = await it.post(ask(tool), PATH)
        assert (status, body["error"]["code"]) == (424, "mcp_server_unavailable")
        assert "not public" in body["error"]["message"]


async def test_the_operators_rules_hold():
    """A tool of a client's server that a rule forbids is not offered."""
    rules = (ToolRuleConfig(policy="never", tools=["theirs__*"]),)
    async with theirs(tool_rules=rules) as (it, _, tool):
        status, _, body = await it.post(ask(tool), PATH)
        assert (status, body["error"]["code"]) == (400, "unknown_tool")


async def test_not_in_the_background(tmp_path):
    """A background response, which outlives its request, has no client's server."""
    async with theirs(responses_file=str(tmp_path / "responses")) as (it, _, tool):
        status, _, body = await it.post(ask(tool, background=True), PATH)
        assert status == 400
        assert "background" in body["error"]["message"]
