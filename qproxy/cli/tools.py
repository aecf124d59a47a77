"""`qproxy tools`: the tools that the server would run, and trying one.

It makes the same workshop from the same settings as the server, so what it shows and does is what a model would get.
A result goes to standard output as the model would read it; how it went goes to standard error.
"""

from __future__ import annotations

import argparse
from typing import Any

import trio

from qproxy import config as configuration
from qproxy.bootstrap import tools as toolmaking
from qproxy.cli.help import DONE, Page
from qproxy.cli.output import complain, remark, say
from qproxy.relay import Workshop
from qproxy.sandbox import Site
from qproxy.tools import invoke as calling
from qproxy.tools.tool import Tool
from qproxy.wire import json_codec as jsontext

HELP = "list the tools that this server runs, or try one"
PAGE = Page(
    about="""List the tools that this server runs for models, with the sandbox and the MCP servers, or call one as a model would. What a tool
    says goes to standard output, how it went to standard error (docs/tools.md).""",
    examples={
        "qproxy tools": "what there is",
        'qproxy tools run run_python \'{"code": "print(2**64)"}\'': "call one",
    },
    exits={**DONE, 1: "the tool failed or cannot run", 2: "wrong usage or configuration, or no such tool"},
)
CONNECT_SECONDS = 10.0
"""For MCP servers to tell their tools."""


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", metavar="PATH", help="configuration file that declares them")
    parser.add_argument("--json", action="store_true", help="as one JSON object")
    actions = parser.add_subparsers(dest="action", metavar="ACTION")
    run = actions.add_parser("run", help="call a tool as a model would; its result goes to standard output")
    run.add_argument("name", help="the tool")
    run.add_argument("arguments", nargs="?", default="{}", help="a JSON object (default: {})")


def run(arguments: argparse.Namespace) -> int:
    config, site = configuration.load(path=arguments.config), Site()
    return trio.run(_main, toolmaking.workshop(config, site=site), site, arguments)


async def _main(workshop: Workshop, site: Site, arguments: argparse.Namespace) -> int:
    async with trio.open_nursery() as nursery:
        await workshop.open(nursery)
        await workshop.toolbox.settled(CONNECT_SECONDS)
        tools = workshop.toolbox.tools()
        if arguments.action == "run":
            code = await _call(tools, arguments.name, arguments.arguments)
        else:
            await site.look()
            code = _list(workshop, site, as_json=arguments.json)
        nursery.cancel_scope.cancel()
    return code


async def _call(tools: dict[str, Tool], name: str, given: str) -> int:
    if name not in tools:
        complain(calling.unknown(tools, name))
        return 2
    refusal = tools[name].refusal
    if refusal is not None:
        complain(f"the tool {name!r} cannot run: {refusal}")
        return 1
    outcome = await calling.call(tools[name], given)
    say(outcome.text)
    remark(f"{'ok' if outcome.ok else 'failed'}, {outcome.seconds * 1000:.0f} ms")
    return 0 if outcome.ok else 1


def _list(workshop: Workshop, site: Site, *, as_json: bool) -> int:
    tools, sources = list(workshop.toolbox.tools().values()), workshop.toolbox.sources
    if as_json:
        told = {
            "sandbox": {"available": site.refusal is None, "reason": site.refusal},
            "tools": [_described(tool) for tool in tools],
            "mcp_servers": [{"label": source.label, "state": source.state} for source in sources],
        }
        say(jsontext.dumps(told).decode())
        return 0
    say(f"sandbox: {site.refusal or 'bubblewrap works here'}")
    for source in sources:
        say(f"MCP server {source.label}: {source.state}")
    for tool in tools:
        about = tool.description.partition("\n")[0][:60]
        state = f"refused: {tool.refusal}" if tool.refusal else tool.fence or "not started here"
        say(f"{tool.name}  ({tool.kind}, {tool.offer}, {state})  {about}")
    if not tools:
        remark("No tools: declare some in qproxy.toml (docs/tools.md).")
    return 0


def _described(tool: Tool) -> dict[str, Any]:
    return {
        "name": tool.name,
        "kind": tool.kind,
        "offer": tool.offer,
        "server": tool.server,
        "sandbox": tool.fence or None,
        "refusal": tool.refusal,
        "timeout": tool.timeout,
        "description": tool.description,
        "parameters": tool.parameters,
    }
