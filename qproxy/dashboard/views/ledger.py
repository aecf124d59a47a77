"""Asking the ledger for a page, which goes on without an answer and says why there is none."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import NamedTuple, TypeVar

from qproxy.ledger import LedgerError, history
from qproxy.server.state import Parts

T = TypeVar("T")
OFF = "There is no ledger: the setting `ledger` is none."


class Told(NamedTuple):
    """What a page says where the ledger has no answer; "" where it has."""

    words: str


async def ask(parts: Parts, question: Callable[[sqlite3.Connection], T]) -> T | Told:
    """What a question gives, or why it has no answer."""
    if parts.ledger is None:
        return Told(OFF)
    try:
        return await parts.ledger.ask(lambda connection: _within_bounds(connection, question))
    except LedgerError as error:
        return Told(f"The ledger has no answer: {error}")


def _within_bounds(connection: sqlite3.Connection, question: Callable[[sqlite3.Connection], T]) -> T:
    with history.bounded(connection):
        return question(connection)
