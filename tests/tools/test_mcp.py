"""MCP servers: real ones, started in the sandbox or reached over HTTP, and their tools."""

import json
import logging
import shutil
import sys
from contextlib import asynccontextmanager, suppress
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import anyio
import hypercorn.trio
import pytest
import trio
from hypercorn.config import Config as HypercornConfig
from mcp.shared.message import SessionMessage
from mcp_types import jsonrpc_message_adapter

from qproxy import config as configuration
from qproxy.bootstrap import tools
from qproxy.cli import main
from qproxy.config import Config
from qproxy.config.accounts import ConfigError
from qproxy.config.tools import McpServerConfig, ToolRuleConfig
from qproxy.sandbox import SandboxPolicy, SandboxUnavailable, SystemSandbox, UnsandboxedLauncher, policy
from qproxy.tools import invoke, mcp, messages
from qproxy.tools.mcp_stdio import stdio_connection
from qproxy.transport import UpstreamTransport
from tests.defaults import transport_limits
from tests.helpers import world
from tests.relay.test_tool_loop import ASK, saying
from tests.relay.test_tool_loop import calling as model_calls

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "docs" / "examples"
SEARCH = str(EXAMPLES / "file_search.py")


def server(code, **given):
    """Return a server on this Python, without a sandbox; these tests are about its messages."""
    connect = stdio_connection(
        [sys.executable, "-I", "-c", PRELUDE + code], UnsandboxedLauncher(), SandboxPolicy()
    )
    return mcp.McpServer("s", connect, **given)


PRELUDE = """
import json, os, sys, time
def say(message):
    print(json.dumps({"jsonrpc": "2.0", **message}), flush=True)
def tool(name, **more):
    return {"name": name, "description": name, "inputSchema": {"type": "object"}, **more}
def serve(tools, call):
    for line in sys.stdin:
        message = json.loads(line)
        method, id, params = message["method"], message.get("id"), message.get("params") or {}
        if method == "initialize":
            result = {"protocolVersion": params["protocolVersion"], "capabilities": {"tools": {"listChanged": True}}, "serverInfo": {"name": "x", "version": "1"}}
        elif method == "tools/list":
            result = tools(params)
        elif method == "tools/call":
            result = call(params)
        elif id is not None:
            say({"id": id, "error": {"code": -32601, "message": "no such method"}})
            continue
        else:
            continue
        say({"id": id, "result": result})
def text(*parts, error=False):
    return {"content": [{"type": "text", "text": part} for part in parts], "isError": error}
"""


def new_transport() -> UpstreamTransport:
    return UpstreamTransport(transport_limits())


@asynccontextmanager
async def connected(*servers):
    """Connect servers, and yield after the first attempt of each."""
    async with trio.open_nursery() as nursery:
        for mcp_server in servers:
            nursery.start_soon(mcp_server.run)
        with trio.fail_after(20):
            for mcp_server in servers:
                await mcp_server.wait_ready()
        yield
        nursery.cancel_scope.cancel()


async def call_tool(mcp_server, name, arguments="{}"):
    (tool,) = [tool for tool in mcp_server.tools if tool.name == name]
    return await invoke.invoke(tool, arguments)


async def wait_until(condition):
    """Return when a condition on another process is true."""
    for _ in range(1000):
        if condition():
            return
        await trio.sleep(0.01)
    raise AssertionError("it did not come true")


TOOLS = """
good = tool("add", inputSchema={"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]})
pages = {None: ([good, tool("odd.näme"), tool("bad", inputSchema={"type": "object", "properties": {"a": {"type": "strnig"}}})], "2"), "2": ([tool("fails"), tool("image"), tool("structure"), tool("dies")], None)}
def call(params):
    name = params["name"]
    if name == "dies": sys.exit(3)
    if name == "image": return {"content": [{"type": "text", "text": "see"}, {"type": "image", "data": "AA==", "mimeType": "image/png"}]}
    if name == "structure": return {"content": [], "structuredContent": {"a": 1}}
    return text("no", "more", error=True) if name == "fails" else text(str(params["arguments"]))
def tools(params):
    listed, cursor = pages[params.get("cursor")]
    return {"tools": listed, **({"nextCursor": cursor} if cursor else {})}
serve(tools, call)
"""


async def test_the_tools_of_a_server(caplog):
    """All pages are read, names are sanitized, tools with invalid schemas are skipped, and results become
    text."""
    mcp_server = server(TOOLS)
    async with connected(mcp_server):
        assert mcp_server.state == "connected, 6 tools"
        assert [tool.name for tool in mcp_server.tools] == [
            "s__add",
            "s__odd_n_me",
            "s__fails",
            "s__image",
            "s__structure",
            "s__dies",
        ]
        assert "skipping tool 'bad'" in caplog.text
        assert (await call_tool(mcp_server, "s__add", '{"a": 2}')).text == "{'a': 2}"
        assert (await call_tool(mcp_server, "s__add", '{"a": "x"}')).text.startswith(
            "Error: Invalid arguments at $.a"
        )
        assert (await call_tool(mcp_server, "s__fails")).text == "Error: no\nmore"
        assert (await call_tool(mcp_server, "s__image")).text == "see\n[image: image/png]"
        assert (await call_tool(mcp_server, "s__structure")).text == '{"a":1}'


async def test_tools_outside_the_allow_list_are_ignored():
    """The allow-list of a server uses the names that the server sends."""
    mcp_server = server(TOOLS, allow=["add"])
    async with connected(mcp_server):
        assert [tool.name for tool in mcp_server.tools] == ["s__add"]


async def test_a_changed_list_is_reloaded():
    """After a list_changed notification the new tools are available."""
    mcp_server = server(
        """
named = ["first"]
def call(params):
    named.append("second")
    say({"method": "notifications/tools/list_changed"})
    return text("ok")
serve(lambda params: {"tools": [tool(name) for name in named]}, call)
"""
    )
    async with connected(mcp_server):
        assert [tool.name for tool in mcp_server.tools] == ["s__first"]
        assert (await call_tool(mcp_server, "s__first")).ok
        await wait_until(lambda: len(mcp_server.tools) == 2)


NEWER = """
from mcp.server import MCPServer
from mcp.server.mcpserver import Context
server = MCPServer("newer")
def second() -> str:
    return "2"
@server.tool()
async def grow(context: Context) -> str:
    server.add_tool(second)
    await context.notify_tools_changed()
    return "grown"
server.run("stdio")
"""


async def test_a_changed_list_is_reloaded_in_the_protocol_of_2026():
    """A server of the SDK's newest protocol notifies its subscribers of changes."""
    mcp_server = server(NEWER)
    async with connected(mcp_server):
        assert [tool.name for tool in mcp_server.tools] == ["s__grow"]
        assert (await call_tool(mcp_server, "s__grow")).text == "grown"
        await wait_until(lambda: len(mcp_server.tools) == 2)
        assert (await call_tool(mcp_server, "s__second")).text == "2"


async def test_a_server_that_exits_is_restarted():
    """The call during which it exits is an error for the model, and then its tools are available again."""
    mcp_server = server(TOOLS)
    async with connected(mcp_server):
        before = mcp_server.tools
        outcome = await call_tool(mcp_server, "s__dies")
        assert not outcome.ok
        assert outcome.text.startswith("Error: The MCP server of this tool")
        await wait_until(lambda: mcp_server.tools and mcp_server.tools is not before)
        assert (await call_tool(mcp_server, "s__add", '{"a": 1}')).ok


FAILING = {
    "ends at once": ("print('bye', file=sys.stderr); sys.exit(7)", "it exited with code 7: bye"),
    "speaks no protocol": (
        "print('hello'); print('[1]'); print('{'); sys.exit(0)",
        "it exited with code 0",
    ),
    "talks without end": ("while True: sys.stdout.write('x' * 100_000)", "it sent a line of more than"),
}


@pytest.mark.parametrize(("code", "expected_error"), FAILING.values(), ids=FAILING.keys())
async def test_a_failing_server(code, expected_error):
    """Its state has the cause, it offers no tools, and other servers are unaffected."""
    bad, good = server(code), server(TOOLS)
    async with connected(bad, good):
        assert bad.state.startswith(f"not connected: {expected_error}")
        assert bad.tools == ()
        assert good.tools


async def test_a_silent_server_times_out(monkeypatch):
    """A server that sends no response is stopped at the connect timeout."""
    monkeypatch.setattr(mcp, "CONNECT_SECONDS", 0.5)
    mcp_server = server("time.sleep(1000)")
    async with connected(mcp_server):
        assert mcp_server.state == "not connected: no response within 0.5 s"


async def test_reconnects_with_backoff(autojump_clock, caplog):
    """An unreachable server is retried after half a second, then after twice as long, up to a minute."""
    times = []

    @asynccontextmanager
    async def fail_to_connect():
        times.append(trio.current_time())
        if times:
            raise OSError("nobody there")
        yield None, None

    mcp_server = mcp.McpServer("s", fail_to_connect)
    with trio.move_on_after(300):
        await mcp_server.run()
    pauses = [round(after - before, 3) for before, after in pairwise(times)]
    assert pauses[:8] == [0.5, 1, 2, 4, 8, 16, 32, 60]
    assert caplog.text.count("nobody there") == 1


class _Http:
    """A stateless MCP server over HTTP, and the headers that it received."""

    def __init__(self):
        self.seen = []

    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan":
            for word in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{word}.complete"})
            return
        self.seen.append(dict(scope["headers"]))
        body = b""
        while (message := await receive())["type"] == "http.request":
            body += message["body"]
            if not message["more_body"]:
                break
        message_in = json.loads(body) if body else {}
        results = {
            "initialize": {
                "protocolVersion": "2025-06-18",
                "capabilities": {"tools": {}},
                "serverInfo": {"name": "x", "version": "1"},
            },
            "tools/list": {"tools": [{"name": "hello", "inputSchema": {"type": "object"}}]},
            "tools/call": {"content": [{"type": "text", "text": "over HTTP"}]},
        }
        status, reply = 405, {}
        if scope["method"] == "POST" and "id" not in message_in:
            status = 202
        elif scope["method"] == "POST":
            status, reply = 200, {"jsonrpc": "2.0", "id": message_in["id"]}
            if message_in["method"] in results:
                reply["result"] = results[message_in["method"]]
            else:
                reply["error"] = {"code": -32601, "message": "no"}
        await send(
            {
                "type": "http.response.start",
                "status": status,
                "headers": [(b"content-type", b"application/json")],
            }
        )
        await send({"type": "http.response.body", "body": json.dumps(reply).encode() if reply else b""})


async def test_a_server_over_http():
    """A remote server is reached at its URL, with the declared headers."""
    app, settings = _Http(), HypercornConfig()
    settings.bind = ["127.0.0.1:0"]
    settings.accesslog = settings.errorlog = None
    logging.getLogger("httpx2").setLevel(logging.WARNING)
    async with trio.open_nursery() as nursery:
        (url,) = await nursery.start(
            lambda task_status: hypercorn.trio.serve(app, settings, task_status=task_status)
        )
        mcp_server = mcp.McpServer(
            "web", mcp.http_connection(f"{url}/mcp", {"authorization": "Bearer token"}, new_transport)
        )
        async with connected(mcp_server):
            assert mcp_server.state == "connected, 1 tools"
            assert (await call_tool(mcp_server, "web__hello")).text == "over HTTP"
        assert all(seen[b"authorization"] == b"Bearer token" for seen in app.seen)
        nursery.cancel_scope.cancel()


def whole(body, kind=b"application/json", more=b""):
    return b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\n%bcontent-length: %d\r\n\r\n%b" % (
        kind,
        more,
        len(body),
        body,
    )


MANY = b'{"jsonrpc":"2.0","id":1,"result":{"a":[' + b"[]," * messages.MAX_VALUES + b"0]}}"
HOSTILE = {
    "a run of blanks": (b"HTTP/1.1 200 OK\r\nA:" + b" " * 60_000 + b"\0\r\n\r\n", "256 blanks"),
    "a long head": (b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 20_000, "max_header_bytes"),
    "many lines": (b"HTTP/1.1 200 OK\r\n" + b"A:\r\n" * 3000 + b"\r\n", "2048 lines"),
    "a coding": (whole(b"x", more=b"content-encoding: gzip\r\n"), "Content-Encoding"),
    "many values": (whole(MANY), "100000 values"),
    "an event of many values": (whole(b"data: " + MANY + b"\n\n", b"text/event-stream"), "100000 values"),
    "a long message": (
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % 2**30
        + bytes(messages.MAX_MESSAGE + 1),
        "8388608 bytes",
    ),
}


@pytest.mark.parametrize(("response", "expected_error"), HOSTILE.values(), ids=HOSTILE)
async def test_a_malicious_server_over_http(response, expected_error, caplog):
    """Its responses have the bounds of every upstream's, before anything parses them; the state names the
    limit."""

    async def serve(stream):
        with suppress(trio.BrokenResourceError):
            await stream.receive_some()
            await stream.send_all(response)
            await stream.send_eof()
            await stream.receive_some()

    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
        port = listener.socket.getsockname()[1]
        mcp_server = mcp.McpServer(
            "web", mcp.http_connection(f"http://127.0.0.1:{port}/mcp", {}, new_transport)
        )
        async with connected(mcp_server):
            assert mcp_server.state.startswith("not connected: ")
            assert expected_error in mcp_server.state
        nursery.cancel_scope.cancel()


def test_counts_the_values_of_a_message():
    """Values in strings do not count, wherever the string is truncated."""
    assert messages.values(b'{"a": [1, "[{,,,", {}]}') == 5
    assert messages.values(b'["cut \\" ,,,') == 1
    messages.check(b'{"a": "' + b"," * messages.MAX_VALUES + b'"}')
    with pytest.raises(messages.TooLarge, match="values"):
        messages.check(MANY)


async def test_a_message_of_many_values_disconnects_its_server():
    """The SDK would create objects for all of them in one step."""
    mcp_server = server(f"print('[' + '[],' * {messages.MAX_VALUES} + '0]', flush=True); time.sleep(60)")
    async with connected(mcp_server):
        assert mcp_server.state == "not connected: it sent a message of more than 100000 values"


async def test_a_flood_of_list_changes(autojump_clock):
    """However often a server notifies of changes, its list is fetched once a second at most."""
    message_in = []

    async def response(received, incoming):
        async for message in received:
            asked_for = message.message
            if not hasattr(asked_for, "id"):
                continue
            reply = {"jsonrpc": "2.0", "id": asked_for.id}
            if asked_for.method == "initialize":
                result = {"protocolVersion": "2025-06-18", "capabilities": {"tools": {"listChanged": True}}}
                reply["result"] = {**result, "serverInfo": {"name": "x", "version": "1"}}
            elif asked_for.method == "tools/list":
                message_in.append(trio.current_time())
                reply["result"] = {"tools": []}
            else:
                reply["error"] = {"code": -32601, "message": "no"}
            await incoming.send(expected_error(reply))

    def expected_error(message):
        return SessionMessage(jsonrpc_message_adapter.validate_python({"jsonrpc": "2.0", **message}))

    async def flood(incoming):
        while True:
            await incoming.send(expected_error({"method": "notifications/tools/list_changed"}))
            await trio.sleep(0.01)

    @asynccontextmanager
    async def connect():
        incoming, received = anyio.create_memory_object_stream[Any](0)
        to_send, outgoing = anyio.create_memory_object_stream[Any](0)
        async with incoming, received, to_send, outgoing, trio.open_nursery() as nursery:
            nursery.start_soon(response, outgoing, incoming)
            nursery.start_soon(flood, incoming)
            yield received, to_send
            nursery.cancel_scope.cancel()

    mcp_server = mcp.McpServer("s", connect)
    with trio.move_on_after(10.5):
        await mcp_server.run()
    assert 9 <= len(message_in) <= 11


async def test_the_tools_of_a_server_in_a_request():
    """A client requests a server by its label, for some of its tools, or receives only the text."""
    entry = McpServerConfig(label="s", argv=[sys.executable, "-I", "-c", PRELUDE + TOOLS], sandbox="none")
    rules = (ToolRuleConfig(policy="always", tools=["s__fails"]),)
    async with world(mcp_servers=(entry,), tool_rules=rules) as it:
        (source,) = it.server.state.tool_runtime.registry.sources
        await source.wait_ready()
        message_in = {**ASK, "tools": [{"type": "mcp", "server_label": "s", "allowed_tools": ["add"]}]}
        it.emulator.script(model_calls(("s__add", {"a": 4})), saying("Four."))
        _, _, body = await it.post({**message_in, "qproxy": {"include": ["tools"]}})
        assert body["qproxy"]["tools"][0]["output"] == "{'a': 4}"
        names = [tool["function"]["name"] for tool in it.emulator.requests[0].body["tools"]]
        assert names == ["s__add", "s__fails"]
        it.emulator.clear()
        it.emulator.script(model_calls(("s__add", {"a": 4})), saying("Four."))
        status, _, body = await it.post(
            {"model": ASK["model"], "input": "hi", "tools": message_in["tools"]}, "/v1/responses"
        )
        assert status == 200
        (call,) = [item for item in body["output"] if item["type"] == "mcp_call"]
        assert (call["server_label"], call["name"], call["output"]) == ("s", "add", "{'a': 4}")


async def _nothing():
    return SandboxUnavailable("this machine has no user namespaces.")


async def test_a_server_is_not_started_without_a_sandbox(autojump_clock):
    """Its state has the reason, and a request for it gets a 503."""
    entry = McpServerConfig(label="s", argv=["true"])
    async with world(mcp_servers=(entry,), site=SystemSandbox(_nothing)) as it:
        (source,) = it.server.state.tool_runtime.registry.sources
        await source.wait_ready()
        assert source.state == "unavailable: no sandbox is available: this machine has no user namespaces."
        status, _, body = await it.post({**ASK, "tools": [{"type": "mcp", "server_label": "s"}]})
        assert (status, body["error"]["code"]) == (503, "tool_unavailable")
        assert "no user namespaces" in body["error"]["message"]


FAULTY = {
    "neither": ({"label": "s"}, "set argv or url"),
    "both": ({"label": "s", "argv": ["true"], "url": "http://x"}, "set argv or url"),
    "a label": ({"label": "a b", "argv": ["true"]}, "label"),
    "an address": ({"label": "s", "url": "file:///etc"}, "http"),
    "a missing program": ({"label": "s", "argv": ["no-such-program"]}, "no program 'no-such-program'"),
    "a missing path": ({"label": "s", "argv": ["true"], "read": ["/nowhere"]}, "there is no /nowhere"),
}


@pytest.mark.parametrize(("fields", "expected_error"), FAULTY.values(), ids=FAULTY.keys())
def test_rejects_an_invalid_declaration(fields, expected_error):
    """A mistake in a server's declaration raises ConfigError before the start."""
    with pytest.raises(ConfigError, match=expected_error):
        tools.build_tool_runtime(Config(mcp_servers=(McpServerConfig(**fields),)))


def test_the_example_is_confined_to_its_folder(capsys):
    """The file search of the documentation, in a sandbox, finds the folder's files, and cannot leave it."""
    if shutil.which("python3", path=policy.PATH) is None:
        return

    def run(name, **arguments):
        code = main(["tools", "--config", str(EXAMPLES / "qproxy.toml"), "run", name, json.dumps(arguments)])
        return code, *capsys.readouterr()

    main(["tools", "--config", str(EXAMPLES / "qproxy.toml"), "--json"])
    listed = json.loads(capsys.readouterr().out)
    if not listed["sandbox"]["available"]:
        assert "no sandbox is available" in listed["mcp_servers"][0]["state"]
        return
    code, out, _ = run("docs__search", words="no shell is involved")
    assert code == 0
    assert "tools.md:" in out
    code, out, _ = run("docs__read", file="tools.md", lines=1)
    assert (code, out) == (0, "# Tools that the server runs\n\n")
    code, out, _ = run("docs__read", file="../pyproject.toml")
    assert code == 1
    assert "FileNotFoundError" in out


async def test_the_example_server_speaks_mcp():
    """The same server works without a sandbox, on the Python of the tests."""
    mcp_server = mcp.McpServer(
        "files",
        stdio_connection(
            [sys.executable, "-I", SEARCH, str(EXAMPLES)], UnsandboxedLauncher(), SandboxPolicy()
        ),
    )
    async with connected(mcp_server):
        assert [tool.name for tool in mcp_server.tools] == ["files__search", "files__read"]
        assert (
            "file_search.py:1"
            in (await call_tool(mcp_server, "files__search", '{"words": "mcp server"}')).text
        )
        assert (
            await call_tool(mcp_server, "files__search", json.dumps({"words": "xyz" + "zy"}))
        ).text.startswith("No line")
        assert not (await call_tool(mcp_server, "files__read", '{"file": "nothing"}')).ok


def test_headers_come_from_the_environment(tmp_path):
    """A token for a server comes from a variable, and is in no repr."""
    (tmp_path / "x.toml").write_text(
        '[[mcp_servers]]\nlabel = "w"\nurl = "https://x.test/mcp"\nheaders_from = {authorization = "TOKEN"}\n'
    )
    config = configuration.load(path=str(tmp_path / "x.toml"), environ={"TOKEN": "Bearer sekret"})
    assert config.mcp_servers[0].headers == {"authorization": "Bearer sekret"}
    assert "sekret" not in repr(config)
