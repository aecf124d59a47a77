"""Configuration: one frozen `Config` from defaults < TOML < environment < flags.

settings   the table of settings
tools      the tables of tools
reading    values from TOML, variables and flags, checked

This is the only room that reads the environment.  Accounts and their presets are in `presets`.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qproxy.config.accounts import signed_in, with_key, zero_configuration
from qproxy.config.parsing import parse, read_environment, read_toml, words
from qproxy.config.settings import SETTINGS, TYPES, Config
from qproxy.config.tools import located, with_environment

__all__ = ["SETTINGS", "TYPES", "Config", "file", "home", "load", "parse", "proxy_environment", "table"]

FILE = "qproxy.toml"


def load(
    *,
    path: str | None = None,
    environ: Mapping[str, str] | None = None,
    flags: Mapping[str, Any] | None = None,
) -> Config:
    """The configuration of this process; ConfigError says what is wrong and where."""
    environ = os.environ if environ is None else environ
    chosen = file(path, environ)
    values = read_toml(chosen) if chosen else {}
    values |= read_environment(environ)
    values |= {name: value for name, value in (flags or {}).items() if value is not None}
    values.setdefault("keys_file", str(home(environ) / "keys.json"))
    values.setdefault("accounts_file", str(home(environ) / "accounts.db"))
    values.setdefault("meters_file", str(home(environ) / "meters"))
    values.setdefault("wrong_keys_file", str(home(environ) / "wrong_keys"))
    values.setdefault("access_file", str(home(environ) / "access.sqlite3"))
    values.setdefault("ledger", str(home(environ) / "ledger.sqlite3"))
    values.setdefault("responses_file", str(home(environ) / "responses.sqlite3"))
    config = Config(**values)
    accounts = tuple(with_key(account, environ) for account in config.accounts)
    folder = Path(chosen).parent if chosen else Path()
    tools = tuple(located(with_environment(entry, environ), folder) for entry in config.tools)
    servers = tuple(located(with_environment(entry, environ), folder) for entry in config.mcp_servers)
    config = dataclasses.replace(config, accounts=accounts, tools=tools, mcp_servers=servers)
    if not config.accounts and config.upstream is None:
        found = (*zero_configuration(environ, config.region), *signed_in(home(environ) / "accounts"))
        config = dataclasses.replace(config, accounts=found)
    return config


def file(path: str | None = None, environ: Mapping[str, str] | None = None) -> str | None:
    """The configuration file: the one named, else $QPROXY_CONFIG, else qproxy.toml if there is one here."""
    environ = os.environ if environ is None else environ
    return path or environ.get("QPROXY_CONFIG") or (FILE if Path(FILE).is_file() else None)


def home(environ: Mapping[str, str] | None = None) -> Path:
    """The data directory: $QPROXY_HOME, or the platform's custom."""
    environ = os.environ if environ is None else environ
    if environ.get("QPROXY_HOME"):
        return Path(environ["QPROXY_HOME"])
    data = environ.get("XDG_DATA_HOME")
    return (Path(data) if data else Path.home() / ".local" / "share") / "qproxy"


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
        said = str(default).lower() if isinstance(default, bool) else default
        shown = "" if default in (None, "", [], {}) else f"`{said}`"
        rows.append(f"| `{name}` | {words(TYPES[name])} | {shown} | {item.metadata['help']} |")
    return "\n".join(rows) + "\n"
