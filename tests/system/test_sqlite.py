"""Concurrent opening of one SQLite file."""

import sqlite3
import threading
from contextlib import closing

import pytest

from qproxy.system.sqlite import open_database


def test_concurrent_opens(tmp_path):
    """Each thread gets its connection in WAL mode; none fails because another changes the mode."""
    path, failed, start = tmp_path / "x.sqlite3", [], threading.Barrier(6)

    def use():
        start.wait()
        try:
            for _ in range(20):
                with closing(open_database(path, patience=20)) as database:
                    database.execute("CREATE TABLE IF NOT EXISTS t (x)")
        except sqlite3.Error as error:
            failed.append(error)

    threads = [threading.Thread(target=use) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


def test_a_held_lock_times_out(tmp_path):
    """Opening a locked file fails after the timeout."""
    path = tmp_path / "x.sqlite3"
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            open_database(path, patience=0.02)
