"""A SQLite file that several processes open, perhaps for the first time and at the same moment."""

from __future__ import annotations

import sqlite3
import time


def write_ahead(database: sqlite3.Connection, patience: float) -> None:
    """Put the file into WAL mode, in which nobody who reads waits for who writes.  Blocks for `patience` at most.

    SQLite's own busy timeout does not count here: of two that change the mode at once, one is refused at once.
    """
    limit = time.monotonic() + patience
    while True:
        try:
            database.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() >= limit:
                raise
            time.sleep(0.01)
