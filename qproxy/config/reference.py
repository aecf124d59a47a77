"""The settings in groups, with types and defaults, for `--help` and docs/configuration.md."""

from __future__ import annotations

import dataclasses

from qproxy.config.parsing import describe_type
from qproxy.config.settings import SETTINGS, TYPES

GROUPS = {
    "host": "listening",
    "upstream": "accounts and models",
    "proxy": "upstream connections",
    "queue_timeout": "requests and client connections",
    "api_keys": "access",
    "strict_params": "translation",
    "oauth_device_url": "Qwen accounts",
    "store_responses": "stored responses",
    "realtime_timeout": "realtime sessions",
    "speech_voices": "sound, pictures and files",
    "log_level": "logs, metrics and usage",
    "shared_state": "several machines",
    "max_tool_rounds": "tools",
}
"""Titles of the groups of settings, by the first setting of each."""


def setting_groups() -> dict[str, list[str]]:
    """Return the names of the settings by the title of their group, in the order of the table."""
    groups: dict[str, list[str]] = {}
    for name in SETTINGS:
        if name in GROUPS:
            groups[GROUPS[name]] = []
        groups[next(reversed(groups))].append(name)
    return groups


def default_text(name: str) -> str:
    """Return the default of a setting as its flag takes it, "" if it has none."""
    item = SETTINGS[name]
    default = item.default if item.default_factory is dataclasses.MISSING else item.default_factory()
    if default in (None, "", [], {}):
        return ""
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, list):
        return ",".join(default)
    return f"{default:.15g}" if isinstance(default, float) else str(default)


def table() -> str:
    """Return the settings as a Markdown table, for docs/configuration.md."""
    rows = ["| setting | type | default | meaning |", "| --- | --- | --- | --- |"]
    for title, names in setting_groups().items():
        rows.append(f"| **{title}** | | | |")
        rows += [_row(name) for name in names]
    return "\n".join(rows) + "\n"


def _row(name: str) -> str:
    default = default_text(name)
    shown = f"`{default}`" if default else ""
    return f"| `{name}` | {describe_type(TYPES[name])} | {shown} | {SETTINGS[name].metadata['help']} |"
