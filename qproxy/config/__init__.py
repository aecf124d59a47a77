"""Configuration: one frozen `Config` from defaults < TOML < environment < flags.

settings   the table of settings
accounts   accounts and their presets
tools      the tables of tools
parsing    values from TOML, variables and flags, checked

This is the only package that reads the environment.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qproxy.config.accounts import accounts_from_env, load_key, logged_in_accounts
from qproxy.config.parsing import describe_type, load_toml, parse, read_environment
from qproxy.config.settings import SETTINGS, TYPES, Config
from qproxy.config.tools import expand_env, resolve_paths

__all__ = [
    "SETTINGS",
    "TYPES",
    "Config",
    "config_file",
    "data_dir",
    "load",
    "parse",
    "proxy_environment",
    "table",
]

FILE = "qproxy.toml"


def load(
    *,
    path: str | None = None,
    environ: Mapping[str, str] | None = None,
    flags: Mapping[str, Any] | None = None,
) -> Config:
    """The configuration of this process; ConfigError says what is wrong and where."""
    environ = os.environ if environ is None else environ
    chosen = config_file(path, environ)
    values = load_toml(chosen) if chosen else {}
    values |= read_environment(environ)
    values |= {name: value for name, value in (flags or {}).items() if value is not None}
    values.setdefault("keys_file", str(data_dir(environ) / "keys.json"))
    values.setdefault("account_state_file", str(data_dir(environ) / "accounts.db"))
    values.setdefault("rate_limits_file", str(data_dir(environ) / "meters"))
    values.setdefault("wrong_keys_file", str(data_dir(environ) / "wrong_keys"))
    values.setdefault("access_file", str(data_dir(environ) / "access.sqlite3"))
    values.setdefault("ledger", str(data_dir(environ) / "ledger.sqlite3"))
    values.setdefault("responses_file", str(data_dir(environ) / "responses.sqlite3"))
    config = Config(**values)
    accounts = tuple(load_key(account, environ) for account in config.accounts)
    folder = Path(chosen).parent if chosen else Path()
    tools = tuple(resolve_paths(expand_env(entry, environ), folder) for entry in config.tools)
    servers = tuple(resolve_paths(expand_env(entry, environ), folder) for entry in config.mcp_servers)
    config = dataclasses.replace(config, accounts=accounts, tools=tools, mcp_servers=servers)
    if not config.accounts and config.upstream is None:
        found = (
            *accounts_from_env(environ, config.region),
            *logged_in_accounts(data_dir(environ) / "accounts"),
        )
        config = dataclasses.replace(config, accounts=found)
    return config


def config_file(path: str | None = None, environ: Mapping[str, str] | None = None) -> str | None:
    """The configuration file: the one named, else $QPROXY_CONFIG, else qproxy.toml if there is one here."""
    environ = os.environ if environ is None else environ
    return path or environ.get("QPROXY_CONFIG") or (FILE if Path(FILE).is_file() else None)


def data_dir(environ: Mapping[str, str] | None = None) -> Path:
    """The data directory: $QPROXY_HOME, or the platform's custom."""
    environ = os.environ if environ is None else environ
    if environ.get("QPROXY_HOME"):
        return Path(environ["QPROXY_HOME"])
    data = environ.get("XDG_DATA_HOME")
    return (Path(data) if data else Path.home() / ".local" / "share") / "qproxy"


def client_key() -> str | None:
    """The API key that programs of this machine use: $QPROXY_KEY."""
    return os.environ.get("QPROXY_KEY") or None


def program_environment(values: Mapping[str, str]) -> Mapping[str, str]:
    """The environment of a program that is started with further variables."""
    return {**os.environ, **values}


def notify_socket() -> str | None:
    """Where systemd wants to hear how this process is, if it does."""
    return os.environ.get("NOTIFY_SOCKET")


def proxy_environment(environ: Mapping[str, str] | None = None) -> Mapping[str, str]:
    """The variables in which an outbound proxy may be named."""
    return dict(os.environ if environ is None else environ)


def table() -> str:
    """The settings as a Markdown table, for docs/configuration.md."""
    rows = ["| setting | type | default | what it is |", "| --- | --- | --- | --- |"]
    blank = Config()
    for name, item in SETTINGS.items():
        default = getattr(blank, name)
        text = str(default).lower() if isinstance(default, bool) else default
        shown = "" if default in (None, "", [], {}) else f"`{text}`"
        rows.append(f"| `{name}` | {describe_type(TYPES[name])} | {shown} | {item.metadata['help']} |")
    return "\n".join(rows) + "\n"
