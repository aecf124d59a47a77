"""Questions to the ledger: who used how much within a window.

Each takes an open connection, so that it can be asked of the writing thread (`Ledger.ask`), of a file from another
process (`qproxy usage`) or of a test's.  Calendar windows begin on a full hour and are sums of `hours`; the rolling one
is a sum of `requests`.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from typing import Literal, TypeAlias

from qproxy.limits.windows import WINDOWS, UsageWindow

GroupBy: TypeAlias = Literal["key", "account", "model"]
_COLUMNS = {"key": ("key", "key"), "account": ("account", "account"), "model": ("model", "served_model")}
"""The columns of `hours` and of `requests` by which sums are made."""
_OF_HOURS = """
    SELECT {by}, sum(requests), sum(failed), sum(prompt_tokens), sum(completion_tokens), sum(cost), sum(unpriced)
    FROM hours WHERE hour >= ? {only} GROUP BY {by}
"""
_OF_REQUESTS = """
    SELECT {by}, count(*), sum(outcome != 'ok'), sum(prompt_tokens), sum(completion_tokens), total(cost),
        sum(cost IS NULL AND prompt_tokens + completion_tokens > 0)
    FROM requests WHERE ended >= ? AND account != '' {only} GROUP BY {by}
"""


@dataclass(frozen=True, slots=True)
class UsageRow:
    """What one key, account or model used within a window."""

    name: str
    window: str
    requests: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0
    """US dollars, estimated."""
    unpriced: int = 0
    """Requests without a known price: `cost` does not count them."""

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


def usage_by(
    connection: sqlite3.Connection, by: GroupBy, window: str, now: float, only: str | None = None
) -> list[UsageRow]:
    """The use of everyone who used anything, the greatest first; `only` asks for one by name.

    A `window` that is none of `WINDOWS` ("all") is everything that the ledger knows.
    """
    of_hours, of_requests = _COLUMNS[by]
    rolling = window in WINDOWS and WINDOWS[window].rolling
    question, column = (_OF_REQUESTS, of_requests) if rolling else (_OF_HOURS, of_hours)
    question = question.format(by=column, only="" if only is None else f"AND {column} = ?")
    since = WINDOWS[window].start(now) if window in WINDOWS else 0.0
    rows = connection.execute(question, (since,) if only is None else (since, only)).fetchall()
    uses = [UsageRow(row[0], window, *row[1:]) for row in rows]
    return sorted(uses, key=lambda use: (-use.tokens, -use.requests, use.name))


def oldest_request(connection: sqlite3.Connection, key: str, window: UsageWindow, now: float) -> float | None:
    """When the first of a key's requests that a rolling window holds was over."""
    row = connection.execute(
        "SELECT min(ended) FROM requests WHERE ended >= ? AND account != '' AND key = ?",
        (window.start(now), key),
    ).fetchone()
    return None if row[0] is None else float(row[0])
