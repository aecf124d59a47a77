"""Secrets of settings that are in files of their own, as containers get them."""

from __future__ import annotations

from pathlib import Path

from qproxy.config.accounts import ConfigError


def read_secret(setting: str, file: str | None) -> str | None:
    """Return the secret in the file that a setting names, None without one. Raises ConfigError."""
    if file is None:
        return None
    try:
        return Path(file).expanduser().read_text("utf-8").strip()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise ConfigError(f"{setting}: cannot read {file} ({reason}).") from None
