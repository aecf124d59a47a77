"""From the settings to a workshop: every tool with its schema, its program and its fence, checked before the start.

ConfigError names the tool and what is wrong with it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeAlias
from urllib.parse import urlsplit

import trio

from qproxy.bootstrap import transport as outbound
from qproxy.config import Config
from qproxy.config.accounts import ConfigError
from qproxy.config.tools import FenceConfig, ServerConfig, ToolConfig, parameters
from qproxy.relay import Memory, Workshop
from qproxy.sandbox import Fence, Limits, Site, Starter, Unfenced
from qproxy.sandbox.policy import MIB, unsafe
from qproxy.tools import arguments as schema
from qproxy.tools import functions, mcp
from qproxy.tools.command import Command, missing_program
from qproxy.tools.mcp_stdio import over_pipes
from qproxy.tools.registry import Rule, Toolbox
from qproxy.tools.tool import NAME, Tool
from qproxy.transport import Transport

ToolLike: TypeAlias = Tool | Callable[..., Any]
"""A function of a program that embeds qproxy, or what `functions.tool` made of it."""


def workshop(config: Config, own: Sequence[ToolLike] = (), site: Site | None = None) -> Workshop:
    """The tools of a configuration, and a program's own functions."""
    site = site or Site()
    fences = [(f"tool {entry.name!r}", fence(entry)) for entry in config.tools if entry.sandbox != "none"]
    fences += [
        (f"MCP server {entry.label!r}", fence(entry))
        for entry in config.mcp_servers
        if entry.argv and entry.sandbox != "none"
    ]
    for complaint in unsafe(fences):
        raise ConfigError(complaint)
    places = trio.CapacityLimiter(config.tool_programs)
    tools = [*(command(entry, site, places) for entry in config.tools), *map(functions.of, own)]
    names = [tool.name for tool in tools]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"tools: {name!r} is declared twice.")
    rules = [Rule(row.offer, row.tools, row.keys, row.models) for row in config.tool_offers]
    patient = replace(config, idle_timeout=mcp.SILENCE_SECONDS, total_timeout=0.0)
    transport = partial(outbound.transport, patient)
    sources = [mcp_server(entry, site, transport) for entry in config.mcp_servers]
    labels = [source.label for source in sources]
    for label in labels:
        if labels.count(label) > 1:
            raise ConfigError(f"mcp_servers: {label!r} is declared twice.")
    toolbox = Toolbox(tools, sources, rules, site if fences else None)
    memory = Memory(trio.current_time, seconds=config.tool_memory_seconds)
    return Workshop(toolbox, limit=config.tool_rounds, memory=memory)


def fence(entry: FenceConfig) -> Fence:
    """What an entry may see and use."""
    limits = Limits(
        cpu_seconds=entry.cpu_seconds,
        memory=entry.memory_mb * MIB,
        processes=entry.processes,
        file_size=entry.file_mb * MIB,
        open_files=entry.open_files,
        tmp=entry.tmp_mb * MIB,
    )
    return Fence(tuple(entry.read), tuple(entry.write), entry.env, entry.network, limits)


def command(entry: ToolConfig, site: Site, places: trio.CapacityLimiter) -> Tool:
    """A command as a tool."""
    where = f"tool {entry.name!r}"
    if not NAME.match(entry.name):
        raise ConfigError(f"{where}: a name has letters, digits, _ and -, and begins with a letter.")
    if not entry.argv:
        raise ConfigError(f"{where}: argv names no program.")
    fenced = entry.sandbox != "none"
    allowed = fence(entry)
    missing = missing_program(entry.argv[0], fenced=fenced)
    if missing is not None:
        raise ConfigError(f"{where}: {missing}")
    accepted = parameters(entry)
    try:
        check = schema.checker(accepted)
    except schema.SchemaError as error:
        raise ConfigError(f"{where}: parameters: {error}") from None
    starter: Starter = site if fenced else Unfenced()
    names = frozenset(accepted.get("properties") or ())
    return Tool(
        name=entry.name,
        description=entry.description,
        parameters=accepted,
        check=check,
        run=Command(entry.argv, starter, allowed, names=names, most=entry.max_output, places=places),
        kind="command",
        timeout=entry.timeout,
        offer=entry.offer,
        refused=lambda: (site.refusal if fenced else None) or check.refusal,
        fence=entry.sandbox,
    )


def mcp_server(entry: ServerConfig, site: Site, transport: Callable[[], Transport]) -> mcp.Server:
    """An MCP server as a source of tools."""
    where = f"MCP server {entry.label!r}"
    if not NAME.match(entry.label):
        raise ConfigError(f"{where}: a label has letters, digits, _ and -, and begins with a letter.")
    if bool(entry.argv) == bool(entry.url):
        raise ConfigError(f"{where}: set argv or url.")
    fenced, allowed = entry.sandbox != "none", fence(entry)
    if entry.url is not None:
        parts = urlsplit(entry.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"{where}: url must be http(s)://host[:port]/path.")
        connect = mcp.over_http(entry.url, entry.headers, transport)
    else:
        missing = missing_program(entry.argv[0], fenced=fenced)
        if missing is not None:
            raise ConfigError(f"{where}: {missing}")
        connect = over_pipes(entry.argv, site if fenced else Unfenced(), allowed)
    return mcp.Server(
        entry.label,
        connect,
        allow=entry.allow,
        offer=entry.offer,
        timeout=entry.timeout,
        fence="elsewhere" if entry.url else entry.sandbox,
    )
