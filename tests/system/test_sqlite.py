"""Many who open one SQLite file at once."""

import sqlite3
import threading
from contextlib import closing

import pytest

from qproxy.system.sqlite import open_database


def test_all_at_once(tmp_path):
    """Each gets its connection in WAL mode; none is refused because another changes the mode."""
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


def test_a_lock_that_stays(tmp_path):
    """The wait has an end."""
    path = tmp_path / "x.sqlite3"
    with closing(sqlite3.connect(path, isolation_level=None)) as one:
        one.execute("BEGIN EXCLUSIVE")
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            open_database(path, patience=0.02)
