"""Asking the ledger for a page, which goes on without an answer and says why there is none."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import NamedTuple, TypeVar

from qproxy.ledger import LedgerError, history
from qproxy.server.state import ServerState

T = TypeVar("T")
LEDGER_OFF = "There is no ledger: the setting `ledger` is none."


class LedgerUnavailable(NamedTuple):
    """What a page says where the ledger has no answer; "" where it has."""

    message: str


async def ask(state: ServerState, question: Callable[[sqlite3.Connection], T]) -> T | LedgerUnavailable:
    """What a question gives, or why it has no answer."""
    if state.ledger is None:
        return LedgerUnavailable(LEDGER_OFF)
    try:
        return await state.ledger.query(lambda connection: _with_timeout(connection, question))
    except LedgerError as error:
        return LedgerUnavailable(f"The ledger has no answer: {error}")


def _with_timeout(connection: sqlite3.Connection, question: Callable[[sqlite3.Connection], T]) -> T:
    with history.query_timeout(connection):
        return question(connection)
