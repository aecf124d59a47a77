"""`qproxy tools`: list the server's tools, or call one.

It builds the same tool runtime from the same settings as the server, so its output is what a model would get.
The result goes to standard output, the outcome and the duration to standard error.
"""

from __future__ import annotations

import argparse
from typing import Any

import trio

from qproxy import config as configuration
from qproxy.bootstrap import tools as tool_setup
from qproxy.cli.help import DONE, HelpPage
from qproxy.cli.output import print_error, print_note, print_result
from qproxy.relay import ToolRuntime
from qproxy.sandbox import SystemSandbox
from qproxy.tools import invoke
from qproxy.tools.tool import Tool
from qproxy.wire import json_codec

HELP = "list the server's tools, or call one"
PAGE = HelpPage(
    about="""List the tools that the server runs for models, with the sandbox and the MCP servers, or call one
    as a model would. The tool's output goes to standard output, the outcome to standard error
    (qproxy help tools).""",
    examples={
        "qproxy tools": "list the tools",
        'qproxy tools run run_python \'{"code": "print(2**64)"}\'': "call a tool",
    },
    exits={
        **DONE,
        1: "the tool failed or is unavailable",
        2: "wrong usage or configuration, or an unknown tool",
    },
)
CONNECT_SECONDS = 10.0
"""Seconds for MCP servers to list their tools."""


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", metavar="PATH", help="configuration file with the tools")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    actions = parser.add_subparsers(dest="action", metavar="ACTION")
    run = actions.add_parser("run", help="call a tool as a model would")
    run.add_argument("name", help="name of the tool")
    run.add_argument("arguments", nargs="?", default="{}", help="arguments as a JSON object (default: {})")


def run(arguments: argparse.Namespace) -> int:
    config, sandbox = configuration.load(path=arguments.config), SystemSandbox()
    return trio.run(_main, tool_setup.build_tool_runtime(config, sandbox=sandbox), sandbox, arguments)


async def _main(tool_runtime: ToolRuntime, sandbox: SystemSandbox, arguments: argparse.Namespace) -> int:
    async with trio.open_nursery() as nursery:
        await tool_runtime.open(nursery)
        await tool_runtime.registry.wait_ready(CONNECT_SECONDS)
        tools = tool_runtime.registry.tools()
        if arguments.action == "run":
            code = await _call(tools, arguments.name, arguments.arguments)
        else:
            await sandbox.detect()
            code = _list(tool_runtime, sandbox, as_json=arguments.json)
        nursery.cancel_scope.cancel()
    return code


async def _call(tools: dict[str, Tool], name: str, text: str) -> int:
    if name not in tools:
        print_error(invoke.unknown_tool_message(tools, name))
        return 2
    reason = tools[name].unavailable_reason
    if reason is not None:
        print_error(f"tool {name!r} is unavailable: {reason}")
        return 1
    outcome = await invoke.invoke(tools[name], text)
    print_result(outcome.text)
    print_note(f"{'ok' if outcome.ok else 'failed'}, {outcome.seconds * 1000:.0f} ms")
    return 0 if outcome.ok else 1


def _list(tool_runtime: ToolRuntime, sandbox: SystemSandbox, *, as_json: bool) -> int:
    tools, sources = list(tool_runtime.registry.tools().values()), tool_runtime.registry.sources
    if as_json:
        states = {
            "sandbox": {
                "available": sandbox.unavailable_reason is None,
                "reason": sandbox.unavailable_reason,
            },
            "tools": [_describe(tool) for tool in tools],
            "mcp_servers": [{"label": source.label, "state": source.state} for source in sources],
        }
        print_result(json_codec.dumps(states).decode())
        return 0
    print_result(f"sandbox: {sandbox.unavailable_reason or 'bubblewrap is available'}")
    for source in sources:
        print_result(f"MCP server {source.label}: {source.state}")
    for tool in tools:
        about = tool.description.partition("\n")[0][:60]
        state = (
            f"unavailable: {tool.unavailable_reason}"
            if tool.unavailable_reason
            else tool.isolation or "remote"
        )
        print_result(f"{tool.name}  ({tool.kind}, {tool.policy}, {state})  {about}")
    if not tools:
        print_note("No tools are configured; declare them in qproxy.toml (qproxy help tools).")
    return 0


def _describe(tool: Tool) -> dict[str, Any]:
    return {
        "name": tool.name,
        "kind": tool.kind,
        "policy": tool.policy,
        "server": tool.server,
        "sandbox": tool.isolation or None,
        "refusal": tool.unavailable_reason,
        "timeout": tool.timeout,
        "description": tool.description,
        "parameters": tool.parameters,
    }
