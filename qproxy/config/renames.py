"""Renamed settings, tables, fields and values: an old name raises ConfigError with the new one."""

from __future__ import annotations

from collections.abc import Mapping

from qproxy.config.accounts import ConfigError
from qproxy.wire.dialects.request_rules import RENAMED_RULES

RENAMED_SETTINGS: Mapping[str, str] = {
    "accounts_file": "account_state_file",
    "bare_json": "bare_json_models",
    "body_timeout": "client_body_timeout",
    "connect_timeout": "upstream_connect_timeout",
    "cumulative": "cumulative_models",
    "embedding_requests": "max_embedding_requests",
    "first_byte_timeout": "upstream_first_byte_timeout",
    "forced_tools": "forced_tool_choice",
    "idle_timeout": "upstream_read_timeout",
    "implied_think": "implied_think_models",
    "ledger_days": "ledger_retention_days",
    "max_clients": "max_client_connections",
    "max_connection_age": "max_client_connection_age",
    "max_connections": "max_upstream_connections",
    "max_waiting": "max_queue_size",
    "meters_file": "rate_limits_file",
    "oauth_refresh_ahead": "oauth_refresh_margin",
    "pool_idle": "pool_idle_timeout",
    "react": "react_models",
    "request_timeout": "client_request_timeout",
    "tool_memory_seconds": "tool_round_cache_seconds",
    "tool_programs": "max_tool_processes",
    "tool_rounds": "max_tool_rounds",
    "total_timeout": "upstream_total_timeout",
    "write_timeout": "upstream_write_timeout",
}
RENAMED_TABLES: Mapping[str, str] = {"tool_offers": "tool_rules"}
RENAMED_FIELDS: Mapping[str, str] = {"offer": "policy"}
"""Fields of the tables of tools."""
RENAMED_VALUES: Mapping[str, Mapping[str, str]] = {
    "kind": {"open": "openai_compatible"},
    "stream_upstream": {"asked": "requested"},
}
"""Renamed values, by setting or field."""
RENAMED_NAMES: Mapping[str, str] = {**RENAMED_SETTINGS, **RENAMED_TABLES, **RENAMED_FIELDS}


def check_name(name: str, where: str) -> None:
    """Raise ConfigError for the old name of a setting, a table or a field."""
    _check(name, RENAMED_NAMES, where)


def check_value(name: str, value: object, where: str) -> None:
    """Raise ConfigError for the old name of a setting's value, or of a rule."""
    if name == "rules" and isinstance(value, dict):
        for rule in value:
            _check(rule, RENAMED_RULES, where)
    elif name in RENAMED_VALUES and isinstance(value, str):
        _check(value, RENAMED_VALUES[name], where)


def _check(name: str, renames: Mapping[str, str], where: str) -> None:
    if name in renames:
        raise ConfigError(f"{where}: {name!r} was renamed to {renames[name]!r}.")
