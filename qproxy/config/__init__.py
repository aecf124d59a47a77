"""Configuration: one frozen `Config` from defaults < TOML < environment < flags.

settings   the table of settings; groups, its parts by theme
accounts   accounts and their presets
tools      the tables of tools
parsing    values from TOML, variables and flags, validated
renames    old names, rejected with the new one
checks     checks of single settings
urls       URLs in settings
secret_values   the secrets among them
reference  the settings in groups, for `--help` and docs/configuration.md

This is the only package that reads the environment.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qproxy.config.accounts import ConfigError, accounts_from_env, load_key, logged_in_accounts
from qproxy.config.parsing import load_toml, parse, read_environment
from qproxy.config.reference import default_text, setting_groups, table
from qproxy.config.secret_files import read_secret
from qproxy.config.settings import SETTINGS, TYPES, Config
from qproxy.config.tools import expand_env, resolve_paths

__all__ = [
    "SETTINGS",
    "TYPES",
    "Config",
    "config_file",
    "data_dir",
    "default_text",
    "load",
    "parse",
    "proxy_environment",
    "setting_groups",
    "table",
]

FILE = "qproxy.toml"


def load(
    *,
    path: str | None = None,
    environ: Mapping[str, str] | None = None,
    flags: Mapping[str, Any] | None = None,
) -> Config:
    """Load the configuration of this process. Raises ConfigError, which names the place of the fault."""
    environ = os.environ if environ is None else environ
    file = config_file(path, environ)
    values = load_toml(file) if file else {}
    values |= read_environment(environ)
    values |= {name: value for name, value in (flags or {}).items() if value is not None}
    values.setdefault("keys_file", str(data_dir(environ) / "keys.json"))
    values.setdefault("account_state_file", str(data_dir(environ) / "accounts.db"))
    values.setdefault("rate_limits_file", str(data_dir(environ) / "meters"))
    values.setdefault("wrong_keys_file", str(data_dir(environ) / "wrong_keys"))
    values.setdefault("access_file", str(data_dir(environ) / "access.sqlite3"))
    values.setdefault("ledger", str(data_dir(environ) / "ledger.sqlite3"))
    values.setdefault("ledger_spool_file", str(data_dir(environ) / "ledger-spool.sqlite3"))
    values.setdefault("shared_state_outbox", str(data_dir(environ) / "shared-state"))
    values.setdefault("audit_file", str(data_dir(environ) / "audit.jsonl"))
    values.setdefault("responses_file", str(data_dir(environ) / "responses.sqlite3"))
    values.setdefault("files_directory", str(data_dir(environ) / "files"))
    values.setdefault("compaction_key_file", str(data_dir(environ) / "compaction.key"))
    config = Config(**values)
    admin_key = config.admin_key or read_secret("admin_key_file", config.admin_key_file)
    accounts = tuple(load_key(account, environ) for account in config.accounts)
    folder = Path(file).parent if file else Path()
    tools = tuple(resolve_paths(expand_env(entry, environ), folder) for entry in config.tools)
    servers = tuple(resolve_paths(expand_env(entry, environ), folder) for entry in config.mcp_servers)
    config = dataclasses.replace(
        config, admin_key=admin_key, accounts=accounts, tools=tools, mcp_servers=servers
    )
    if not config.accounts and config.upstream is None:
        implicit = (
            *accounts_from_env(environ, config.region),
            *logged_in_accounts(data_dir(environ) / "accounts"),
        )
        config = dataclasses.replace(config, accounts=implicit)
    return config


def config_file(path: str | None = None, environ: Mapping[str, str] | None = None) -> str | None:
    """Return `path`, $QPROXY_CONFIG, or qproxy.toml if it exists in the working directory."""
    environ = os.environ if environ is None else environ
    return path or environ.get("QPROXY_CONFIG") or (FILE if os.path.lexists(FILE) else None)


def data_dir(environ: Mapping[str, str] | None = None) -> Path:
    """Return the data directory: $QPROXY_HOME, or qproxy in the XDG data directory. Raises ConfigError."""
    environ = os.environ if environ is None else environ
    if environ.get("QPROXY_HOME"):
        return Path(environ["QPROXY_HOME"])
    data = environ.get("XDG_DATA_HOME")
    try:
        return (Path(data) if data else Path.home() / ".local" / "share") / "qproxy"
    except RuntimeError:  # neither HOME nor an entry in the user database
        raise ConfigError("this user has no home directory; set QPROXY_HOME to a directory.") from None


def client_key() -> str | None:
    """The API key that programs of this machine use: $QPROXY_KEY."""
    return os.environ.get("QPROXY_KEY") or None


def program_environment(values: Mapping[str, str]) -> Mapping[str, str]:
    """The environment of a program that is started with further variables."""
    return {**os.environ, **values}


def shows_colors(*, is_terminal: bool) -> bool:
    """Return whether output has colors: on a terminal, unless NO_COLOR (no-color.org) is set."""
    return is_terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def notify_socket() -> str | None:
    """Return the address of systemd's notification socket, or None."""
    return os.environ.get("NOTIFY_SOCKET")


def proxy_environment(environ: Mapping[str, str] | None = None) -> Mapping[str, str]:
    """Return the environment, whose variables may name an outbound proxy."""
    return dict(os.environ if environ is None else environ)
