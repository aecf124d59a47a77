"""Values of the setting `ledger`: a file, the URL of a PostgreSQL database, or `none`."""

from __future__ import annotations

from pathlib import Path

from qproxy.config.accounts import ConfigError

DATABASE_SCHEMES = ("postgresql://", "postgres://")
NO_LEDGER = "none"
"""Value of the setting `ledger` that disables the ledger."""


def is_database_url(ledger: str | None) -> bool:
    """Return whether the setting names a database."""
    return ledger is not None and ledger.startswith(DATABASE_SCHEMES)


def ledger_file(ledger: str | None) -> Path | None:
    """Return the ledger's file, None if it has none."""
    if ledger is None or ledger == NO_LEDGER or is_database_url(ledger):
        return None
    return Path(ledger)


def check_ledger(ledger: str | None) -> None:
    """Raise ConfigError for the URL of another kind of database, which would be taken for a file's name."""
    if ledger is not None and "://" in ledger and not is_database_url(ledger):
        raise ConfigError("ledger: must be a file, a postgresql:// URL, or none.")
