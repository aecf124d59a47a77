"""Queries of the ledger for a page, which is shown without their result, and with the reason, if there is
none."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import NamedTuple, TypeVar

from qproxy.ledger import LedgerError, LedgerReader
from qproxy.ledger.usage import UsageRow
from qproxy.server.state import ServerState

T = TypeVar("T")
LEDGER_OFF = "The usage ledger is off (setting ledger)."


class LedgerUnavailable(NamedTuple):
    """The reason why a query has no result."""

    message: str


async def ask(state: ServerState, query: Callable[[LedgerReader], Awaitable[T]]) -> T | LedgerUnavailable:
    """Return the result of a query, or the reason why there is none."""
    if state.ledger is None:
        return LedgerUnavailable(LEDGER_OFF)
    try:
        return await query(state.ledger)
    except LedgerError as error:
        return LedgerUnavailable(f"The usage ledger did not respond: {error}")


def by_name(usage: Mapping[str, Sequence[UsageRow]]) -> dict[str, dict[str, UsageRow]]:
    """Index the rows of every window by their name."""
    return {window: {row.name: row for row in rows} for window, rows in usage.items()}
