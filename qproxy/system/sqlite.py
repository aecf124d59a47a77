"""SQLite files as every member of `backends.local` opens them.

Here are the file and its directory, for their owner only; a connection's settings; a transaction. Tables,
their versions, threads and the meaning of errors belong to the members.

In WAL mode one process writes while others read, and one that is killed leaves whole transactions or none.
With synchronous = NORMAL it loses nothing that was written either; a power failure may cost the last moments.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qproxy.system.directories import make_private_directory

READ_TIMEOUT = 2.0


def open_database(path: Path | None, *, patience: float) -> sqlite3.Connection:
    """Open the file, creating it if necessary; without a path, memory. Raises OSError, sqlite3.Error.

    Any thread may use the connection, one at a time. `patience` is seconds for another process to finish its
    write.
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

    SQLite's own busy timeout does not apply here: of two processes that change the mode at once, one fails at
    once.
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
    """Open an existing file for reading. Raises sqlite3.Error."""
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=patience)


def is_damage(error: Exception) -> bool:
    """Return whether an error means that the file is damaged, or no database at all."""
    codes = (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT)
    return isinstance(error, sqlite3.DatabaseError) and getattr(error, "sqlite_errorcode", None) in codes


def read_error(path: Path) -> str | None:
    """Return why a file cannot be read as a database, None if it can."""
    try:
        connection = open_readonly(path, patience=READ_TIMEOUT)
        try:
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        finally:
            connection.close()
    except sqlite3.Error as error:
        return str(error)
    return None


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Commit everything that the block changes, or nothing; no other process writes meanwhile."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


@contextmanager
def erasing(connection: sqlite3.Connection) -> Iterator[None]:
    """Overwrite what the block deletes, in the file and in its log, as far as no reader needs the log."""
    connection.execute("PRAGMA secure_delete = ON")
    try:
        yield
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    finally:
        connection.execute("PRAGMA secure_delete = OFF")
