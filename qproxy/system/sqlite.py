"""SQLite files as every room here opens them: the ledger, the board of accounts, the stored responses.

Here: the file and its folder, for their owner only; a connection's settings; a transaction.  Not here: tables, their
versions and what an error means, which are each room's own, and threads.

In WAL mode one process writes while others read, and one that is killed leaves whole transactions or none.  With
synchronous = NORMAL it loses nothing that was written either; a lost power may cost the last moments.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qproxy.system.directories import make_private_directory


def open_database(path: Path | None, *, patience: float) -> sqlite3.Connection:
    """A connection to the file, made where there is none; without a path, to memory.  OSError, sqlite3.Error.

    Any thread may use it, one at a time.  `patience`: seconds for another process to end its write.
    """
    if path is not None:
        make_private_directory(path.parent)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    connection = sqlite3.connect(
        path or ":memory:", timeout=patience, isolation_level=None, check_same_thread=False
    )
    try:
        _write_ahead(connection, patience)
        connection.execute("PRAGMA synchronous = NORMAL")
    except BaseException:
        connection.close()
        raise
    return connection


def _write_ahead(connection: sqlite3.Connection, patience: float) -> None:
    """Put the file into WAL mode.

    SQLite's own busy timeout does not count here: of two who change the mode at once, one is refused at once.
    """
    limit = time.monotonic() + patience
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() >= limit:
                raise
            time.sleep(0.01)


def open_readonly(path: Path, *, patience: float) -> sqlite3.Connection:
    """A connection that changes nothing, to a file that is there.  sqlite3.Error."""
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=patience)


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """All that the block changes, or nothing; nobody else changes anything meanwhile."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
