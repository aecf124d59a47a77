"""The tables of tools: `[[tools]]`, `[[mcp_servers]]` and `[[tool_rules]]`.

A command and an MCP server that qproxy starts have the same sandbox settings: `SandboxConfig`.
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
    """The sandbox of a program that qproxy starts."""

    sandbox: Literal["bubblewrap", "none"] = "bubblewrap"
    """none: with all permissions of the server itself."""
    read: list[str] = field(default_factory=list)
    """Files and directories that it may read."""
    write: list[str] = field(default_factory=list)
    env: dict[str, str] = field(default_factory=dict, repr=False)
    env_from: list[str] = field(default_factory=list)
    """Variables of the server's environment to pass on."""
    network: bool = False
    cpu_seconds: int = 10
    memory_mb: int = 512
    """Memory limit per process, in MiB."""
    processes: int = 32
    file_mb: int = 16
    tmp_mb: int = 64
    open_files: int = 64


@dataclass(frozen=True, kw_only=True)
class ToolConfig(SandboxConfig):
    """One command: an entry of `[[tools]]`."""

    name: str
    argv: list[str]
    """The program and its arguments; `{name}` stands for an argument of the call."""
    description: str = ""
    parameters: dict[str, Any] = field(default_factory=dict)
    """A JSON Schema of the arguments."""
    parameters_file: str | None = None
    """A file with the schema, instead of `parameters`."""
    policy: ToolPolicy = "on request"
    timeout: float = 30.0
    max_output: int = 64 * 1024


@dataclass(frozen=True, kw_only=True)
class McpServerConfig(SandboxConfig):
    """One MCP server: an entry of `[[mcp_servers]]`."""

    label: str
    argv: list[str] = field(default_factory=list)
    """Command of a server that qproxy starts (stdio transport)."""
    url: str | None = None
    """URL of a remote server (streamable HTTP)."""
    headers: dict[str, str] = field(default_factory=dict, repr=False)
    headers_from: dict[str, str] = field(default_factory=dict)
    """Variables of the server's environment with header values, by header name."""
    allow: list[str] = field(default_factory=lambda: ["*"])
    """Patterns of the names of tools to use."""
    policy: ToolPolicy = "on request"
    timeout: float = 30.0
    """Seconds per call."""
    cpu_seconds: int = 3600
    """CPU seconds of the whole process, which serves many calls."""


@dataclass(frozen=True, kw_only=True)
class ToolRuleConfig:
    """One rule: an entry of `[[tool_rules]]`; the first match applies."""

    policy: ToolPolicy
    tools: list[str] = field(default_factory=lambda: ["*"])
    keys: list[str] = field(default_factory=lambda: ["*"])
    """Patterns of the names of API keys."""
    models: list[str] = field(default_factory=lambda: ["*"])


def expand_env(entry: T, environ: Mapping[str, str]) -> T:
    """Return the entry with the values of the variables that it names. Raises ConfigError."""
    where = f"tool {entry.name!r}" if isinstance(entry, ToolConfig) else "MCP server"
    inherited = {name: _expand(name, environ, where) for name in entry.env_from}
    changed = replace(entry, env={**inherited, **entry.env})
    if isinstance(changed, McpServerConfig):
        headers = {header: _expand(name, environ, where) for header, name in changed.headers_from.items()}
        return replace(changed, headers={**changed.headers, **headers})
    return changed


def resolve_paths(entry: T, folder: Path) -> T:
    """Return the entry with its paths (`./x`, `../x`, `~/x`) resolved from the directory of its file."""

    def resolve(word: str) -> str:
        if word in (".", "..") or word.startswith(("./", "../")):
            return str((folder / word).resolve())
        return str(Path(word).expanduser()) if word.startswith("~/") else word

    changed = replace(entry, read=[*map(resolve, entry.read)], write=[*map(resolve, entry.write)])
    if isinstance(changed, ToolConfig | McpServerConfig):
        changed = replace(changed, argv=[*map(resolve, changed.argv)])
    if isinstance(changed, ToolConfig) and changed.parameters_file is not None:
        changed = replace(changed, parameters_file=resolve(changed.parameters_file))
    return changed


def _expand(name: str, environ: Mapping[str, str], where: str) -> str:
    if name not in environ:
        raise ConfigError(f"{where}: environment variable {name} is not set.")
    return environ[name]


def parameters(entry: ToolConfig) -> dict[str, Any]:
    """Return the JSON Schema of a command's arguments. Raises ConfigError."""
    if entry.parameters_file is None:
        return {"type": "object", "properties": {}, **entry.parameters}
    where = f"tool {entry.name!r}: {entry.parameters_file}"
    try:
        schema = json.loads(Path(entry.parameters_file).read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"{where}: cannot read the file ({error.strerror}).") from None
    except ValueError:
        raise ConfigError(f"{where}: the file is not JSON.") from None
    if not isinstance(schema, dict):
        raise ConfigError(f"{where}: the file is not a JSON Schema of an object.")
    return schema
