"""Account states in an SQLite file, for all processes of a machine.

One row per account with its state as JSON, changed in one transaction. SQLite because it survives a process
that is killed in the middle, and because the kernel releases the lock of a killed process. All of it happens
in a thread, one call at a time: the event loop waits for no disk. A power failure may cost the last seconds
(`system.sqlite`).

`max_in_flight` is each process's own here: to count the slots of all would cost every request a transaction.

A file that cannot be used raises StateStoreError, which its users survive.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import trio

from qproxy.accounts.cooldowns import Cooldown
from qproxy.accounts.shared_state import (
    AccountGrant,
    AccountState,
    AccountStateDelta,
    StateStoreError,
    acquire_rate,
    claim_probe,
    from_json,
    merge,
    to_json,
)
from qproxy.limits.token_bucket import Amounts
from qproxy.system.sqlite import is_damage, open_database, open_readonly, transaction

T = TypeVar("T")
log = logging.getLogger("qproxy.accounts")
LOCK_SECONDS = 2.0
"""Seconds for another process to finish its write."""
FORGET_AFTER_SECONDS = 90 * 86400.0
"""Age at which the state of an unused account is deleted."""
_SCHEMA = """
    CREATE TABLE IF NOT EXISTS accounts (identity TEXT PRIMARY KEY, standing TEXT NOT NULL, at REAL NOT NULL)
"""


class SqliteAccountState:
    """The file, as one process uses it."""

    counts_in_flight = False

    def __init__(self, path: Path, *, wall_clock: Callable[[], float] = time.time) -> None:
        self.path = path
        self.process = f"{os.getpid()}-{secrets.token_hex(4)}"
        self._wall_clock = wall_clock
        self._connection: sqlite3.Connection | None = None
        self._lock = trio.CapacityLimiter(1)

    def __repr__(self) -> str:
        return f"<SqliteAccountState {self.path}>"

    async def acquire(
        self, identity: str, limits: Amounts, amounts: Amounts, max_in_flight: int | None
    ) -> AccountGrant:
        def change(rows: Mapping[str, AccountState]) -> tuple[dict[str, AccountState], AccountGrant]:
            state, grant = acquire_rate(
                rows.get(identity, AccountState()), limits, amounts, self._wall_clock()
            )
            return {identity: state}, grant

        return await self._in_thread(lambda: self._transaction([identity], change))

    def release(self, identity: str) -> None:
        pass

    async def claim_probe(self, identity: str, cooldowns: Mapping[str, Cooldown]) -> bool:
        def change(rows: Mapping[str, AccountState]) -> tuple[dict[str, AccountState], bool]:
            state, claimed = claim_probe(rows.get(identity, AccountState()), cooldowns, self._wall_clock())
            return ({identity: state} if claimed else {}), claimed

        return await self._in_thread(lambda: self._transaction([identity], change))

    async def wait_change(self, seconds: float) -> None:
        await trio.sleep(seconds)

    async def exchange(self, delta: Mapping[str, AccountStateDelta]) -> Mapping[str, AccountState]:
        def change(
            rows: Mapping[str, AccountState],
        ) -> tuple[dict[str, AccountState], Mapping[str, AccountState]]:
            wall_clock = self._wall_clock()
            changed = {
                identity: merge(rows.get(identity, AccountState()), item, self.process, wall_clock)
                for identity, item in delta.items()
                if not item.is_empty or self.process in rows.get(identity, AccountState()).in_flight
            }
            return changed, {**rows, **changed}

        return await self._in_thread(lambda: self._transaction(list(delta), change))

    async def load(self, identities: Iterable[str]) -> Mapping[str, AccountState]:
        """Return states without changing the file; none if there is no file."""
        states = await self._in_thread(lambda: read(self.path))
        return {identity: states[identity] for identity in identities if identity in states}

    async def aclose(self) -> None:
        if self._connection is not None:
            await self._in_thread(self._connection.close)
            self._connection = None

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await trio.to_thread.run_sync(work, limiter=self._lock)

    def _transaction(
        self,
        identities: list[str],
        change: Callable[[Mapping[str, AccountState]], tuple[dict[str, AccountState], T]],
    ) -> T:
        """Read some rows and change some, in one transaction."""
        with _map_errors(self.path):
            connection = self._connection = self._connection or _open(self.path, self._wall_clock())
            with transaction(connection):
                changed, result = change(_rows(connection, identities))
                now = self._wall_clock()
                connection.executemany(
                    "INSERT OR REPLACE INTO accounts VALUES (?, ?, ?)",
                    [(key, json.dumps(to_json(state)), now) for key, state in changed.items()],
                )
            return result


def read(path: Path) -> dict[str, AccountState]:
    """Read the states of a file, none if there is no file. Raises StateStoreError."""
    if not path.exists():
        return {}
    with _map_errors(path):
        connection = open_readonly(path, patience=LOCK_SECONDS)
        try:
            return _rows(connection)
        finally:
            connection.close()


@contextmanager
def _map_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise StateStoreError(
            f"{path}: {reason}; set account_state_file to a file that can be written."
        ) from None
    except (sqlite3.Error, ValueError, TypeError, ArithmeticError) as error:
        advice = "; move it away, and a new one is created." if is_damage(error) else ""
        raise StateStoreError(f"{path}: {error}{advice}") from None


def _open(path: Path, wall_clock: float) -> sqlite3.Connection:
    connection = open_database(path, patience=LOCK_SECONDS)
    try:
        connection.execute(_SCHEMA)
        connection.execute("DELETE FROM accounts WHERE at < ?", (wall_clock - FORGET_AFTER_SECONDS,))
    except BaseException:
        connection.close()
        raise
    return connection


def _rows(connection: sqlite3.Connection, identities: list[str] | None = None) -> dict[str, AccountState]:
    rows = connection.execute("SELECT identity, standing FROM accounts").fetchall()
    return {identity: _state(text) for identity, text in rows if identities is None or identity in identities}


def _state(text: str) -> AccountState:
    """Read a state; a damaged row counts as an unused account, and keeps no other from being read."""
    try:
        return from_json(json.loads(text))
    except ValueError:
        log.warning("account state: a damaged row was reset")
        return AccountState()
