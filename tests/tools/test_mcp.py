"""MCP servers: real ones, started behind the fence or reached over HTTP, and what becomes of their tools."""

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
    """A server on our own Python, without a fence: what it says is what these tests are about."""
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
    """Servers that have had their first try."""
    async with trio.open_nursery() as nursery:
        for one in servers:
            nursery.start_soon(one.run)
        with trio.fail_after(20):
            for one in servers:
                await one.wait_ready()
        yield
        nursery.cancel_scope.cancel()


async def ask(one, name, arguments="{}"):
    (tool,) = [tool for tool in one.tools if tool.name == name]
    return await invoke.invoke(tool, arguments)


async def until(condition):
    """Return when something that another process does has come true."""
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


async def test_what_a_server_offers(caplog):
    """All pages are read, names are made sound, faulty schemas left out, and results become text."""
    one = server(TOOLS)
    async with connected(one):
        assert one.state == "connected, 6 tools"
        assert [tool.name for tool in one.tools] == [
            "s__add",
            "s__odd_n_me",
            "s__fails",
            "s__image",
            "s__structure",
            "s__dies",
        ]
        assert "skipping tool 'bad'" in caplog.text
        assert (await ask(one, "s__add", '{"a": 2}')).text == "{'a': 2}"
        assert (await ask(one, "s__add", '{"a": "x"}')).text.startswith("Error: Invalid arguments at $.a")
        assert (await ask(one, "s__fails")).text == "Error: no\nmore"
        assert (await ask(one, "s__image")).text == "see\n[image: image/png]"
        assert (await ask(one, "s__structure")).text == '{"a":1}'


async def test_a_list_that_is_not_allowed_is_not_seen():
    """The allow-list of a server goes by the names that the server gives."""
    one = server(TOOLS, allow=["add"])
    async with connected(one):
        assert [tool.name for tool in one.tools] == ["s__add"]


async def test_a_change_of_the_list_is_noticed():
    """When the server says that its tools changed, the new ones are there."""
    one = server(
        """
named = ["first"]
def call(params):
    named.append("second")
    say({"method": "notifications/tools/list_changed"})
    return text("ok")
serve(lambda params: {"tools": [tool(name) for name in named]}, call)
"""
    )
    async with connected(one):
        assert [tool.name for tool in one.tools] == ["s__first"]
        assert (await ask(one, "s__first")).ok
        await until(lambda: len(one.tools) == 2)


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


async def test_a_change_of_the_list_is_noticed_in_the_protocol_of_2026():
    """A server of the SDK's newest protocol tells its changes to who asks for them."""
    one = server(NEWER)
    async with connected(one):
        assert [tool.name for tool in one.tools] == ["s__grow"]
        assert (await ask(one, "s__grow")).text == "grown"
        await until(lambda: len(one.tools) == 2)
        assert (await ask(one, "s__second")).text == "2"


async def test_a_server_that_dies_is_started_anew():
    """The call that it died of is an error for the model, and a moment later its tools are back."""
    one = server(TOOLS)
    async with connected(one):
        before = one.tools
        outcome = await ask(one, "s__dies")
        assert not outcome.ok
        assert outcome.text.startswith("Error: The MCP server of this tool")
        await until(lambda: one.tools and one.tools is not before)
        assert (await ask(one, "s__add", '{"a": 1}')).ok


FAILING = {
    "ends at once": ("print('bye', file=sys.stderr); sys.exit(7)", "it exited with code 7: bye"),
    "speaks no protocol": (
        "print('hello'); print('[1]'); print('{'); sys.exit(0)",
        "it exited with code 0",
    ),
    "talks without end": ("while True: sys.stdout.write('x' * 100_000)", "it sent a line of more than"),
}


@pytest.mark.parametrize(("code", "said"), FAILING.values(), ids=FAILING.keys())
async def test_a_server_that_does_not_serve(code, said):
    """Its state says what it did, it offers nothing, and nobody else is harmed."""
    bad, good = server(code), server(TOOLS)
    async with connected(bad, good):
        assert bad.state.startswith(f"not connected: {said}")
        assert bad.tools == ()
        assert good.tools


async def test_a_silent_server_is_given_up(monkeypatch):
    """A server that takes the handshake and says nothing is ended when its time is over."""
    monkeypatch.setattr(mcp, "CONNECT_SECONDS", 0.5)
    one = server("time.sleep(1000)")
    async with connected(one):
        assert one.state == "not connected: no response within 0.5 s"


async def test_pauses_grow(autojump_clock, caplog):
    """A server that cannot be reached is tried again after half a second, then twice as long, up to a
    minute."""
    times = []

    @asynccontextmanager
    async def nowhere():
        times.append(trio.current_time())
        if times:
            raise OSError("nobody there")
        yield None, None

    one = mcp.McpServer("s", nowhere)
    with trio.move_on_after(300):
        await one.run()
    pauses = [round(after - before, 3) for before, after in pairwise(times)]
    assert pauses[:8] == [0.5, 1, 2, 4, 8, 16, 32, 60]
    assert caplog.text.count("nobody there") == 1


class _Http:
    """A stateless MCP server over HTTP, and what headers it has seen."""

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
        asked = json.loads(body) if body else {}
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
        if scope["method"] == "POST" and "id" not in asked:
            status = 202
        elif scope["method"] == "POST":
            status, reply = 200, {"jsonrpc": "2.0", "id": asked["id"]}
            if asked["method"] in results:
                reply["result"] = results[asked["method"]]
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
    """A server that runs elsewhere is reached by its address, with the declared headers."""
    app, settings = _Http(), HypercornConfig()
    settings.bind = ["127.0.0.1:0"]
    settings.accesslog = settings.errorlog = None
    logging.getLogger("httpx2").setLevel(logging.WARNING)
    async with trio.open_nursery() as nursery:
        (url,) = await nursery.start(
            lambda task_status: hypercorn.trio.serve(app, settings, task_status=task_status)
        )
        one = mcp.McpServer(
            "web", mcp.http_connection(f"{url}/mcp", {"authorization": "Bearer token"}, new_transport)
        )
        async with connected(one):
            assert one.state == "connected, 1 tools"
            assert (await ask(one, "web__hello")).text == "over HTTP"
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


@pytest.mark.parametrize(("answer", "said"), HOSTILE.values(), ids=HOSTILE)
async def test_a_hostile_server_over_http(answer, said, caplog):
    """What it sends has the bounds of every upstream's, before anything parses it; the state says which."""

    async def serve(stream):
        with suppress(trio.BrokenResourceError):
            await stream.receive_some()
            await stream.send_all(answer)
            await stream.send_eof()
            await stream.receive_some()

    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
        port = listener.socket.getsockname()[1]
        one = mcp.McpServer("web", mcp.http_connection(f"http://127.0.0.1:{port}/mcp", {}, new_transport))
        async with connected(one):
            assert one.state.startswith("not connected: ")
            assert said in one.state
        nursery.cancel_scope.cancel()


def test_the_values_of_a_message():
    """Those in strings do not count, wherever the string is cut."""
    assert messages.values(b'{"a": [1, "[{,,,", {}]}') == 5
    assert messages.values(b'["cut \\" ,,,') == 1
    messages.check(b'{"a": "' + b"," * messages.MAX_VALUES + b'"}')
    with pytest.raises(messages.TooLarge, match="values"):
        messages.check(MANY)


async def test_a_message_of_many_values_ends_its_server():
    """The SDK would make objects of all of them in one step."""
    one = server(f"print('[' + '[],' * {messages.MAX_VALUES} + '0]', flush=True); time.sleep(60)")
    async with connected(one):
        assert one.state == "not connected: it sent a message of more than 100000 values"


async def test_a_flood_of_changes(autojump_clock):
    """However often a server says that its list has changed, it is asked once a second at most."""
    asked = []

    async def answer(received, incoming):
        async for message in received:
            asked_for = message.message
            if not hasattr(asked_for, "id"):
                continue
            reply = {"jsonrpc": "2.0", "id": asked_for.id}
            if asked_for.method == "initialize":
                result = {"protocolVersion": "2025-06-18", "capabilities": {"tools": {"listChanged": True}}}
                reply["result"] = {**result, "serverInfo": {"name": "x", "version": "1"}}
            elif asked_for.method == "tools/list":
                asked.append(trio.current_time())
                reply["result"] = {"tools": []}
            else:
                reply["error"] = {"code": -32601, "message": "no"}
            await incoming.send(said(reply))

    def said(message):
        return SessionMessage(jsonrpc_message_adapter.validate_python({"jsonrpc": "2.0", **message}))

    async def flood(incoming):
        while True:
            await incoming.send(said({"method": "notifications/tools/list_changed"}))
            await trio.sleep(0.01)

    @asynccontextmanager
    async def connect():
        incoming, received = anyio.create_memory_object_stream[Any](0)
        to_send, outgoing = anyio.create_memory_object_stream[Any](0)
        async with incoming, received, to_send, outgoing, trio.open_nursery() as nursery:
            nursery.start_soon(answer, outgoing, incoming)
            nursery.start_soon(flood, incoming)
            yield received, to_send
            nursery.cancel_scope.cancel()

    one = mcp.McpServer("s", connect)
    with trio.move_on_after(10.5):
        await one.run()
    assert 9 <= len(asked) <= 11


async def test_the_tools_of_a_server_through_the_whole_way():
    """A client asks for a server by its label, for some of its tools, or sees only a better answer."""
    entry = McpServerConfig(label="s", argv=[sys.executable, "-I", "-c", PRELUDE + TOOLS], sandbox="none")
    rules = (ToolRuleConfig(policy="always", tools=["s__fails"]),)
    async with world(mcp_servers=(entry,), tool_rules=rules) as it:
        (source,) = it.server.state.tool_runtime.registry.sources
        await source.wait_ready()
        asked = {**ASK, "tools": [{"type": "mcp", "server_label": "s", "allowed_tools": ["add"]}]}
        it.emulator.script(model_calls(("s__add", {"a": 4})), saying("Four."))
        _, _, body = await it.post({**asked, "qproxy": {"include": ["tools"]}})
        assert body["qproxy"]["tools"][0]["output"] == "{'a': 4}"
        names = [tool["function"]["name"] for tool in it.emulator.requests[0].body["tools"]]
        assert names == ["s__add", "s__fails"]
        it.emulator.clear()
        it.emulator.script(model_calls(("s__add", {"a": 4})), saying("Four."))
        status, _, body = await it.post(
            {"model": ASK["model"], "input": "hi", "tools": asked["tools"]}, "/v1/responses"
        )
        assert status == 200
        (call,) = [item for item in body["output"] if item["type"] == "mcp_call"]
        assert (call["server_label"], call["name"], call["output"]) == ("s", "add", "{'a': 4}")


async def _nothing():
    return SandboxUnavailable("this machine has no user namespaces.")


async def test_without_a_sandbox_a_server_is_not_started(autojump_clock):
    """Its state says why, and a request for it is told to come back."""
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


@pytest.mark.parametrize(("fields", "said"), FAULTY.values(), ids=FAULTY.keys())
def test_a_faulty_declaration_is_named(fields, said):
    """What is wrong with a server's declaration is said before the start."""
    with pytest.raises(ConfigError, match=said):
        tools.build_tool_runtime(Config(mcp_servers=(McpServerConfig(**fields),)))


def test_the_example_searches_its_folder_and_nothing_else(capsys):
    """The file search of the documentation, fenced: it finds what is in the folder, and cannot leave it."""
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


async def test_the_example_server_speaks_the_protocol():
    """The same server without a fence, on whatever Python runs the tests."""
    one = mcp.McpServer(
        "files",
        stdio_connection(
            [sys.executable, "-I", SEARCH, str(EXAMPLES)], UnsandboxedLauncher(), SandboxPolicy()
        ),
    )
    async with connected(one):
        assert [tool.name for tool in one.tools] == ["files__search", "files__read"]
        assert "file_search.py:1" in (await ask(one, "files__search", '{"words": "mcp server"}')).text
        assert (await ask(one, "files__search", json.dumps({"words": "xyz" + "zy"}))).text.startswith(
            "No line"
        )
        assert not (await ask(one, "files__read", '{"file": "nothing"}')).ok


def test_headers_come_from_the_environment(tmp_path):
    """A token for a server stands in a variable, and in no repr."""
    (tmp_path / "x.toml").write_text(
        '[[mcp_servers]]\nlabel = "w"\nurl = "https://x.test/mcp"\nheaders_from = {authorization = "TOKEN"}\n'
    )
    config = configuration.load(path=str(tmp_path / "x.toml"), environ={"TOKEN": "Bearer sekret"})
    assert config.mcp_servers[0].headers == {"authorization": "Bearer sekret"}
    assert "sekret" not in repr(config)
