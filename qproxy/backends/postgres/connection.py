"""Connections to a PostgreSQL database: its address without the password, and time limits that always hold.

`statement_timeout` is the server's, and a server that is frozen or cut off keeps none: a timer shuts the
socket down when a block takes longer. Statements are not prepared and settings are local to a transaction,
so a pooler such as PgBouncer may be in between.
"""

from __future__ import annotations

import math
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeAlias

import psycopg
from psycopg.conninfo import conninfo_to_dict

from qproxy.ledger.protocol import LedgerError

Connection: TypeAlias = psycopg.Connection[tuple[Any, ...]]
SERVER_HEAD_START = 1.0
"""Seconds that the server has to report its own timeout before the socket is shut down."""


class PostgresAddress:
    """The address of a database, and how to log in."""

    def __init__(self, url: str, *, password: str | None = None, timeout: float) -> None:
        """`timeout` is seconds for a connection, and for a statement. Raises LedgerError."""
        try:
            parameters: dict[str, Any] = conninfo_to_dict(url)
        except psycopg.ProgrammingError:  # its message has the URL
            raise LedgerError("the setting ledger is not a valid PostgreSQL URL.") from None
        if password is not None:
            parameters["password"] = password
        self._parameters = parameters
        self.timeout = timeout

    def __repr__(self) -> str:
        return f"<PostgresAddress {self}>"

    def __str__(self) -> str:
        database, host = self._parameters.get("dbname", ""), self._parameters.get("host", "localhost")
        return f"PostgreSQL database {database!r} at {host}:{self._parameters.get('port', 5432)}"

    def connect(self) -> Connection:
        """Open a connection. Raises LedgerError."""
        seconds = max(2, math.ceil(self.timeout))  # libpq takes 1 for 2
        defaults = {"application_name": "qproxy", "tcp_user_timeout": seconds * 1000}
        parameters = {**defaults, **self._parameters, "connect_timeout": seconds}
        try:
            return psycopg.connect(**parameters, autocommit=True, prepare_threshold=None)
        except psycopg.Error as error:
            raise LedgerError(self.reason(error)) from None

    def reason(self, error: Exception) -> str:
        """Return the first line of an error, without the password."""
        text = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        password = self._parameters.get("password")
        return text.replace(str(password), "***") if password else text


@contextmanager
def transaction(connection: Connection, seconds: float) -> Iterator[None]:
    """Commit what the block does, or nothing; each statement may take that long, and so may all of it."""
    with _deadline(connection, seconds + SERVER_HEAD_START), connection.transaction():
        milliseconds = str(max(1, round(seconds * 1000)))
        connection.execute("SELECT set_config('statement_timeout', %s, true)", [milliseconds])
        yield


@contextmanager
def _deadline(connection: Connection, seconds: float) -> Iterator[None]:
    """Shut the connection's socket down if the block takes longer, so that libpq stops waiting."""
    twin = socket.socket(fileno=os.dup(connection.fileno()))  # of its own: no other file gets its number
    timer = threading.Timer(seconds, _shut_down, [twin])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        twin.close()


def _shut_down(twin: socket.socket) -> None:
    with suppress(OSError):  # closed a moment ago
        twin.shutdown(socket.SHUT_RDWR)
