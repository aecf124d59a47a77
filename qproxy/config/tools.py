"""The tables of tools: `[[tools]]`, `[[mcp_servers]]` and `[[tool_rules]]`.

What each may be given is the same for a command and for an MCP server that is started here: `SandboxConfig`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from qproxy.config.accounts import ConfigError

ToolPolicy = Literal["always", "on request", "never"]
T = TypeVar("T", bound="SandboxConfig")


@dataclass(frozen=True, kw_only=True)
class SandboxConfig:
    """What a program that is started here may see and use."""

    sandbox: Literal["bubblewrap", "none"] = "bubblewrap"
    """"none": with all that the server itself may do."""
    read: list[str] = field(default_factory=list)
    """Files and folders that it may read."""
    write: list[str] = field(default_factory=list)
    env: dict[str, str] = field(default_factory=dict, repr=False)
    env_from: list[str] = field(default_factory=list)
    """Names of variables of the server's environment that it gets."""
    network: bool = False
    cpu_seconds: int = 10
    memory_mb: int = 512
    """Of each process."""
    processes: int = 32
    file_mb: int = 16
    tmp_mb: int = 64
    open_files: int = 64


@dataclass(frozen=True, kw_only=True)
class ToolConfig(SandboxConfig):
    """One command: an entry of `[[tools]]`."""

    name: str
    argv: list[str]
    """The program and its words; `{name}` stands for an argument."""
    description: str = ""
    parameters: dict[str, Any] = field(default_factory=dict)
    """A JSON Schema."""
    parameters_file: str | None = None
    """Where the schema is instead."""
    policy: ToolPolicy = "on request"
    timeout: float = 30.0
    max_output: int = 64 * 1024


@dataclass(frozen=True, kw_only=True)
class McpServerConfig(SandboxConfig):
    """One MCP server: an entry of `[[mcp_servers]]`."""

    label: str
    argv: list[str] = field(default_factory=list)
    """A server that is started here and speaks over its pipes."""
    url: str | None = None
    """A server that runs elsewhere (streamable HTTP)."""
    headers: dict[str, str] = field(default_factory=dict, repr=False)
    headers_from: dict[str, str] = field(default_factory=dict)
    """Headers whose values are in variables of the server's environment."""
    allow: list[str] = field(default_factory=lambda: ["*"])
    """Patterns of its tools' names."""
    policy: ToolPolicy = "on request"
    timeout: float = 30.0
    """Of one call."""
    cpu_seconds: int = 3600
    """Of the whole process, which serves many calls."""


@dataclass(frozen=True, kw_only=True)
class ToolRuleConfig:
    """One rule: an entry of `[[tool_rules]]`; the first that fits decides."""

    policy: ToolPolicy
    tools: list[str] = field(default_factory=lambda: ["*"])
    keys: list[str] = field(default_factory=lambda: ["*"])
    """Names of client keys."""
    models: list[str] = field(default_factory=lambda: ["*"])


def expand_env(entry: T, environ: Mapping[str, str]) -> T:
    """The entry with the variables that it names."""
    who = f"tool {entry.name!r}" if isinstance(entry, ToolConfig) else "MCP server"
    given = {name: _expand(name, environ, who) for name in entry.env_from}
    changed = replace(entry, env={**given, **entry.env})
    if isinstance(changed, McpServerConfig):
        named = {field: _expand(name, environ, who) for field, name in changed.headers_from.items()}
        return replace(changed, headers={**changed.headers, **named})
    return changed


def resolve_paths(entry: T, folder: Path) -> T:
    """The entry with its paths (`./x`, `../x`, `~/x`) where they are: seen from the folder of its file."""

    def found(word: str) -> str:
        if word in (".", "..") or word.startswith(("./", "../")):
            return str((folder / word).resolve())
        return str(Path(word).expanduser()) if word.startswith("~/") else word

    changed = replace(entry, read=[*map(found, entry.read)], write=[*map(found, entry.write)])
    if isinstance(changed, ToolConfig | McpServerConfig):
        changed = replace(changed, argv=[*map(found, changed.argv)])
    if isinstance(changed, ToolConfig) and changed.parameters_file is not None:
        changed = replace(changed, parameters_file=found(changed.parameters_file))
    return changed


def _expand(name: str, environ: Mapping[str, str], who: str) -> str:
    if name not in environ:
        raise ConfigError(f"{who}: the variable {name} is not set.")
    return environ[name]


def parameters(entry: ToolConfig) -> dict[str, Any]:
    """The schema of a command's arguments, wherever it is."""
    if entry.parameters_file is None:
        return {"type": "object", "properties": {}, **entry.parameters}
    where = f"tool {entry.name!r}: {entry.parameters_file}"
    try:
        schema = json.loads(Path(entry.parameters_file).read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"{where} cannot be read ({error.strerror}).") from None
    except ValueError:
        raise ConfigError(f"{where} is not JSON.") from None
    if not isinstance(schema, dict):
        raise ConfigError(f"{where} is not a JSON Schema of an object.")
    return schema
