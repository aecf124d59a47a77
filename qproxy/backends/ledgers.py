"""From a `Config` to the usage ledger: a file, or a PostgreSQL database.

`open_ledger` makes the one of a server, the other functions those of commands and checks. The driver of the
database is imported for its URL alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from qproxy.backends.local.ledger import SqliteUsageLedger
from qproxy.backends.local.ledger_merge import open_merged
from qproxy.backends.local.ledger_reader import SqliteLedgerReader
from qproxy.backends.local.ledger_spool import LedgerSpool
from qproxy.config import Config
from qproxy.config.accounts import ConfigError
from qproxy.config.ledger import is_database_url, ledger_file
from qproxy.config.secret_files import read_secret
from qproxy.ledger import LedgerError, LedgerReader, Pricing, UsageLedger

if TYPE_CHECKING:
    from qproxy.backends.postgres.connection import PostgresAddress


def open_ledger(config: Config, pricing: Pricing) -> UsageLedger | None:
    """Return the usage ledger, None without one. Raises ConfigError."""
    days, file = config.ledger_retention_days, ledger_file(config.ledger)
    if file is not None:
        return SqliteUsageLedger(file, pricing, keep_days=days)
    if not is_database_url(config.ledger):
        return None
    with _database_errors():
        from qproxy.backends.postgres.ledger import PostgresUsageLedger

        spool = LedgerSpool(Path(config.ledger_spool_file) if config.ledger_spool_file else None)
        return PostgresUsageLedger(_address(config), pricing, keep_days=days, spool=spool)


def open_ledger_reader(config: Config) -> LedgerReader:
    """Return the ledger for a command. Raises LedgerError if there is none, ConfigError."""
    file = ledger_file(config.ledger)
    if file is not None:
        return SqliteLedgerReader(file)
    if not is_database_url(config.ledger):
        raise LedgerError("the usage ledger is off (setting ledger).")
    with _database_errors():
        from qproxy.backends.postgres.ledger_reader import PostgresLedgerReader
    return PostgresLedgerReader(_address(config))


def open_merged_ledgers(config: Config, files: Iterable[Path]) -> LedgerReader:
    """Return this server's ledger, if it has one, and others' files as one. Raises LedgerError."""
    if is_database_url(config.ledger):
        raise LedgerError("a ledger in a database has every machine's usage; --merge is for ledger files.")
    own = ledger_file(config.ledger)
    return open_merged([own, *files] if own is not None and own.exists() else files)


def describe_ledger_database(config: Config) -> str:
    """Connect to the ledger's database, and describe it. Raises LedgerError, ConfigError."""
    with _database_errors():
        from qproxy.backends.postgres.ledger_reader import describe
    return describe(_address(config))


@contextmanager
def _database_errors() -> Iterator[None]:
    """Raise ConfigError where the ledger's database cannot be used by these settings."""
    try:
        yield
    except ImportError:
        raise ConfigError(
            "ledger: a PostgreSQL database needs the extra: pip install 'qproxy[postgres]'"
        ) from None
    except LedgerError as error:
        raise ConfigError(str(error)) from None


def _address(config: Config) -> PostgresAddress:
    from qproxy.backends.postgres.connection import PostgresAddress

    password = read_secret("ledger_password_file", config.ledger_password_file)
    return PostgresAddress(config.ledger or "", password=password, timeout=config.ledger_timeout)
