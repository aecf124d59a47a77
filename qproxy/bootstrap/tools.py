"""The tools that the server runs, from a `Config`: each with its schema, its program and its sandbox policy.

Everything is checked before the server starts: ConfigError names the tool and what is wrong with it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeAlias

import trio

from qproxy.bootstrap.limits import transport_limits
from qproxy.bootstrap.transport import build_transport, ssl_context
from qproxy.config import Config
from qproxy.config.accounts import ConfigError
from qproxy.config.tools import McpServerConfig, SandboxConfig, ToolConfig, parameters
from qproxy.config.urls import split_url
from qproxy.relay import ToolRoundStore, ToolRuntime
from qproxy.sandbox import Launcher, ResourceLimits, SandboxPolicy, SystemSandbox, UnsandboxedLauncher
from qproxy.sandbox.policy import MIB, policy_errors
from qproxy.tools import arguments, functions, mcp
from qproxy.tools.client_servers import ClientServers
from qproxy.tools.command import CommandTool, missing_program
from qproxy.tools.mcp_stdio import stdio_connection
from qproxy.tools.registry import ToolRegistry, ToolRule
from qproxy.tools.tool import NAME_PATTERN, Tool
from qproxy.transport import ConnectFunction, UpstreamTransport
from qproxy.transport.public_hosts import connect_public

ToolLike: TypeAlias = Tool | Callable[..., Any]
"""A function of a program that embeds qproxy, or the `Tool` that `functions.tool` makes of it."""


def build_tool_runtime(
    config: Config,
    own: Sequence[ToolLike] = (),
    sandbox: SystemSandbox | None = None,
    rounds: ToolRoundStore | None = None,
) -> ToolRuntime:
    """Return the tools of the settings and of the program that embeds qproxy."""
    sandbox = sandbox or SystemSandbox()
    policies = [
        (f"tool {entry.name!r}", build_sandbox_policy(entry))
        for entry in config.tools
        if entry.sandbox != "none"
    ]
    policies += [
        (f"MCP server {entry.label!r}", build_sandbox_policy(entry))
        for entry in config.mcp_servers
        if entry.argv and entry.sandbox != "none"
    ]
    for error in policy_errors(policies):
        raise ConfigError(error)
    places = trio.CapacityLimiter(config.max_tool_processes)
    tools = [*(command_tool(entry, sandbox, places) for entry in config.tools), *map(functions.as_tool, own)]
    names = [tool.name for tool in tools]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"tools: {name!r} is declared twice.")
    rules = [ToolRule(row.policy, row.tools, row.keys, row.models) for row in config.tool_rules]
    new_transport = partial(open_mcp_transport, config)
    sources = [mcp_server(entry, sandbox, new_transport) for entry in config.mcp_servers]
    labels = [source.label for source in sources]
    for label in labels:
        if labels.count(label) > 1:
            raise ConfigError(f"mcp_servers: {label!r} is declared twice.")
    registry = ToolRegistry(tools, sources, rules, sandbox if policies else None)
    return ToolRuntime(
        registry,
        limit=config.max_tool_rounds,
        rounds=rounds,
        search_tool=config.web_search_tool,
        requires_search=config.missing_web_search == "error",
        client_servers=ClientServers(
            hosts=tuple(config.client_mcp_hosts),
            allows_http=config.client_mcp_private,
            timeout=config.client_mcp_timeout,
            new_transport=partial(open_client_mcp_transport, config),
        ),
    )


def open_mcp_transport(config: Config) -> UpstreamTransport:
    """Return a new transport to an MCP server, which may be silent for long within a response."""
    bounds = replace(transport_limits(config), idle_timeout=mcp.SILENCE_SECONDS, total_timeout=None)
    return build_transport(config, limits=bounds)


def open_client_mcp_transport(config: Config) -> UpstreamTransport:
    """Return a new transport to an MCP server that a client names: without a proxy, which would resolve the
    name again."""
    bounds = replace(transport_limits(config), idle_timeout=mcp.SILENCE_SECONDS, total_timeout=None)
    connect: ConnectFunction = trio.open_tcp_stream if config.client_mcp_private else connect_public
    return UpstreamTransport(bounds, connect=connect, ssl_context=ssl_context(config))


def build_sandbox_policy(entry: SandboxConfig) -> SandboxPolicy:
    """Return the files, environment and resources that a tool may use."""
    limits = ResourceLimits(
        cpu_seconds=entry.cpu_seconds,
        memory=entry.memory_mb * MIB,
        processes=entry.processes,
        file_size=entry.file_mb * MIB,
        open_files=entry.open_files,
        tmp_bytes=entry.tmp_mb * MIB,
    )
    return SandboxPolicy(tuple(entry.read), tuple(entry.write), entry.env, entry.network, limits)


def command_tool(entry: ToolConfig, sandbox: SystemSandbox, places: trio.CapacityLimiter) -> Tool:
    """Return a command as a tool."""
    where = f"tool {entry.name!r}"
    if not NAME_PATTERN.match(entry.name):
        raise ConfigError(f"{where}: a name has letters, digits, _ and -, and begins with a letter.")
    if not entry.argv:
        raise ConfigError(f"{where}: argv names no program.")
    fenced = entry.sandbox != "none"
    allowed = build_sandbox_policy(entry)
    missing = missing_program(entry.argv[0], sandboxed=fenced)
    if missing is not None:
        raise ConfigError(f"{where}: {missing}")
    accepted = parameters(entry)
    try:
        check = arguments.make_validator(accepted)
    except arguments.SchemaError as error:
        raise ConfigError(f"{where}: parameters: {error}") from None
    launcher: Launcher = sandbox if fenced else UnsandboxedLauncher()
    names = frozenset(accepted.get("properties") or ())
    return Tool(
        name=entry.name,
        description=entry.description,
        parameters=accepted,
        validate=check,
        run=CommandTool(entry.argv, launcher, allowed, names=names, limit=entry.max_output, limiter=places),
        kind="command",
        timeout=entry.timeout,
        policy=entry.policy,
        unavailable=lambda: (sandbox.unavailable_reason if fenced else None) or check.unavailable_reason,
        isolation=entry.sandbox,
    )


def mcp_server(
    entry: McpServerConfig, sandbox: SystemSandbox, transport: Callable[[], UpstreamTransport]
) -> mcp.McpServer:
    """Return an MCP server as a source of tools."""
    where = f"MCP server {entry.label!r}"
    if not NAME_PATTERN.match(entry.label):
        raise ConfigError(f"{where}: a label has letters, digits, _ and -, and begins with a letter.")
    if bool(entry.argv) == bool(entry.url):
        raise ConfigError(f"{where}: set argv or url.")
    fenced, allowed = entry.sandbox != "none", build_sandbox_policy(entry)
    if entry.url is not None:
        if split_url(entry.url.partition("?")[0]) is None:
            raise ConfigError(f"{where}: url must be http(s)://host[:port]/path.")
        connect = mcp.http_connection(entry.url, entry.headers, transport)
    else:
        missing = missing_program(entry.argv[0], sandboxed=fenced)
        if missing is not None:
            raise ConfigError(f"{where}: {missing}")
        connect = stdio_connection(entry.argv, sandbox if fenced else UnsandboxedLauncher(), allowed)
    return mcp.McpServer(
        entry.label,
        connect,
        allow=entry.allow,
        policy=entry.policy,
        timeout=entry.timeout,
        isolation="elsewhere" if entry.url else entry.sandbox,
    )
