"""The board of the processes on one machine: a SQLite file in the data directory.

One row an account, its standing as JSON, changed in one transaction.  SQLite because it survives a process that is
killed in the middle, and because its lock is taken back from the dead.  All of it happens in a thread, one at a time:
the event loop waits for no disk.  After a loss of power the last seconds may be missing (`database`), which costs an
answer or two.

A board that cannot be used raises BoardError, which its users survive.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import trio

from qproxy.accounts.shared_state import (
    BoardError,
    Claim,
    Limits,
    News,
    Standing,
    claimed,
    from_json,
    merged,
    to_json,
)
from qproxy.system.sqlite import opened, opened_to_read, transaction

T = TypeVar("T")
log = logging.getLogger("qproxy.accounts")
LOCK_SECONDS = 2.0
"""For others to finish writing."""
FORGOTTEN = 90 * 86400.0
"""Seconds after which an account that nobody has used is no longer known."""
_SCHEMA = "CREATE TABLE IF NOT EXISTS accounts (identity TEXT PRIMARY KEY, standing TEXT NOT NULL, at REAL NOT NULL)"


class BoardFile:
    """The file, as one process uses it."""

    def __init__(self, path: Path, *, wall: Callable[[], float] = time.time) -> None:
        self.path = path
        self.process = f"{os.getpid()}-{secrets.token_hex(4)}"
        self._wall = wall
        self._connection: sqlite3.Connection | None = None
        self._one = trio.CapacityLimiter(1)

    def __repr__(self) -> str:
        return f"<BoardFile {self.path}>"

    async def claim(self, identity: str, limits: Limits, tokens: int) -> Claim:
        def change(rows: Mapping[str, Standing]) -> tuple[dict[str, Standing], Claim]:
            known = rows.get(identity, Standing())
            standing, claim = claimed(known, limits, tokens, self._wall())
            return {identity: standing}, claim

        return await self._in_thread(lambda: self._change([identity], change))

    async def exchange(self, news: Mapping[str, News]) -> Mapping[str, Standing]:
        def change(rows: Mapping[str, Standing]) -> tuple[dict[str, Standing], Mapping[str, Standing]]:
            wall = self._wall()
            changed = {
                identity: merged(rows.get(identity, Standing()), item, self.process, wall)
                for identity, item in news.items()
                if not item.empty or self.process in rows.get(identity, Standing()).in_flight
            }
            return changed, {**rows, **changed}

        return await self._in_thread(lambda: self._change(list(news), change))

    async def aclose(self) -> None:
        if self._connection is not None:
            await self._in_thread(self._connection.close)
            self._connection = None

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await trio.to_thread.run_sync(work, limiter=self._one)

    def _change(
        self, identities: list[str], change: Callable[[Mapping[str, Standing]], tuple[dict[str, Standing], T]]
    ) -> T:
        """Read some rows, change some, as if nobody else were there."""
        with _ours(self.path):
            connection = self._connection = self._connection or _opened(self.path, self._wall())
            with transaction(connection):
                changed, result = change(_rows(connection, identities))
                now = self._wall()
                connection.executemany(
                    "INSERT OR REPLACE INTO accounts VALUES (?, ?, ?)",
                    [(key, json.dumps(to_json(standing)), now) for key, standing in changed.items()],
                )
            return result


def read(path: Path) -> dict[str, Standing]:
    """What a board says, for people: nothing where there is none.  Raises BoardError."""
    if not path.exists():
        return {}
    with _ours(path):
        connection = opened_to_read(path, patience=LOCK_SECONDS)
        try:
            return _rows(connection)
        finally:
            connection.close()


@contextmanager
def _ours(path: Path) -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, OSError, ValueError, TypeError, ArithmeticError) as error:
        raise BoardError(f"{path}: {error}") from None


def _opened(path: Path, wall: float) -> sqlite3.Connection:
    connection = opened(path, patience=LOCK_SECONDS)
    try:
        connection.execute(_SCHEMA)
        connection.execute("DELETE FROM accounts WHERE at < ?", (wall - FORGOTTEN,))
    except BaseException:
        connection.close()
        raise
    return connection


def _rows(connection: sqlite3.Connection, identities: list[str] | None = None) -> dict[str, Standing]:
    rows = connection.execute("SELECT identity, standing FROM accounts").fetchall()
    return {
        identity: _standing(text) for identity, text in rows if identities is None or identity in identities
    }


def _standing(text: str) -> Standing:
    """Read a standing; a damaged row is one of an account that nobody has used, and keeps no other from being read."""
    try:
        return from_json(json.loads(text))
    except ValueError:
        log.warning("a row of the accounts' board cannot be read, and begins anew")
        return Standing()
