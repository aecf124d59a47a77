"""A reader of the ledger in PostgreSQL for commands, which needs no server."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import psycopg

from qproxy.backends.ledger_queries import LedgerQueries
from qproxy.backends.postgres import queries, schema
from qproxy.backends.postgres.connection import Connection, PostgresAddress, transaction
from qproxy.ledger.protocol import LedgerError

T = TypeVar("T")
QUERY_SECONDS = 60.0


def describe(address: PostgresAddress) -> str:
    """Connect, and return what is there. Raises LedgerError if a server could not use it."""
    try:
        connection = address.connect()
    except LedgerError as error:
        raise LedgerError(f"{address}: {error}.") from None
    try:
        number, allowed = connection.info.server_version, _may_create(connection)
        known = schema.version(connection)
        schema.check_not_newer(known)
    except (psycopg.Error, LedgerError) as error:
        raise LedgerError(f"{address}: {address.reason(error)}.") from None
    finally:
        connection.close()
    if not allowed:
        raise LedgerError(f"{address}: the role may not create tables in its schema.")
    state = "tables of this version" if known == len(schema.MIGRATIONS) else "the server will make its tables"
    return f"{address}, version {number // 10000}, {state}"


def _may_create(connection: Connection) -> bool:
    query = "SELECT coalesce(has_schema_privilege(current_schema(), 'CREATE'), false)"
    return connection.execute(query).fetchone() == (True,)


class PostgresLedgerReader(LedgerQueries[Connection]):
    """The ledger of all machines. Queries block: a command has nothing else to do."""

    functions = queries

    def __init__(self, address: PostgresAddress) -> None:
        """Raises LedgerError if there is no ledger."""
        self._address = address
        try:
            self._connection = address.connect()
        except LedgerError as error:
            raise LedgerError(f"{address}: {error}.") from None
        try:
            schema.check_version(self._connection)
        except (psycopg.Error, LedgerError) as error:
            self._connection.close()
            raise LedgerError(f"{address}: {address.reason(error)}.") from None

    def __repr__(self) -> str:
        return f"<PostgresLedgerReader {self._address}>"

    async def aclose(self) -> None:
        self._connection.close()

    async def query(self, run: Callable[[Connection], T]) -> T:
        try:
            with transaction(self._connection, QUERY_SECONDS):
                return run(self._connection)
        except psycopg.Error as error:
            raise LedgerError(f"{self._address}: {self._address.reason(error)}.") from None
