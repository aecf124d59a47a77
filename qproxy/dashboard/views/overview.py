"""The first page: how the server is, what it does now, and what it did within a span of time.

What moves is a part of its own (`/dashboard/live`), which the page's script asks for again and again; it is about this
process.  The rest is the ledger's.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from qproxy.dashboard import charts
from qproxy.dashboard import formatting as words
from qproxy.dashboard.auth import Visit
from qproxy.dashboard.charts import Chart
from qproxy.dashboard.rendering import Pages
from qproxy.dashboard.views import ledger
from qproxy.dashboard.views.accounts import AccountPages
from qproxy.dashboard.views.ledger import Told
from qproxy.dashboard.views.requests import lines
from qproxy.ledger import history
from qproxy.ledger.history import Slot, Speed
from qproxy.server.http_response import Reply
from qproxy.server.state import Parts
from qproxy.telemetry.records import Record

RECENT = 8
MOST_LIVE = 50


@dataclass(frozen=True, slots=True)
class Period:
    """A span of time that can be looked at."""

    name: str
    words: str
    seconds: float
    pieces: int


PERIODS = {
    period.name: period
    for period in (
        Period("1h", "hour", 3600, 60),
        Period("24h", "24 hours", 86400, 48),
        Period("7d", "7 days", 7 * 86400, 56),
        Period("30d", "30 days", 30 * 86400, 60),
    )
}
STATES = {
    "ready": "Ready",
    "unusable": "No account can serve now",
    "draining": "Stopping: no new request is taken",
}


@dataclass(frozen=True, slots=True)
class Live:
    """A request under way."""

    id: str
    age: float
    endpoint: str
    key: str
    model: str
    account: str
    doing: str


class OverviewPages:
    """The page, and the part of it that moves."""

    def __init__(self, parts: Parts, pages: Pages, wall: Callable[[], float]) -> None:
        self._parts = parts
        self._pages = pages
        self._wall = wall
        self._accounts = AccountPages(parts, pages, wall)

    def views(self) -> Iterator[tuple[str, str, Callable[..., Awaitable[Reply]]]]:
        yield "GET", "", self._page
        yield "GET", "/live", self._live

    async def _page(self, visit: Visit) -> Reply:
        period, now = PERIODS.get(visit.query.get("period", ""), PERIODS["24h"]), self._wall()
        found = await ledger.ask(self._parts, partial(_history, now=now, period=period))
        recent = await ledger.ask(self._parts, partial(history.requests, limit=RECENT))
        drawn, totals = (
            ([], None)
            if isinstance(found, Told)
            else (_charts(*found[:2], period), _totals(found[0], found[2]))
        )
        return self._pages.page(
            visit,
            "overview.html",
            period=period,
            periods=PERIODS.values(),
            charts=drawn,
            totals=totals,
            trouble=found.words if isinstance(found, Told) else "",
            recent=[] if isinstance(recent, Told) else lines(recent),
            accounts=self._accounts.cards(now),
            now=now,
            **self._moving(),
        )

    async def _live(self, visit: Visit) -> Reply:
        return self._pages.page(visit, "live.html", **self._moving())

    def _moving(self) -> dict[str, Any]:
        health = self._parts.health()
        live = [_live(record) for record in self._parts.counts.live.values() if record.story.model]
        return {
            "live": live[-MOST_LIVE:][::-1],
            "under_way": len(live),
            "waiting": self._parts.admission.waiting + self._parts.relay.accounts.waiting,
            "health": STATES[health.state],
            "well": health.ready,
            "usable": health.usable,
            "account_count": sum(health.accounts.values()),
        }


def _live(record: Record) -> Live:
    story = record.story
    if record.first_byte is not None and record.stream:
        doing = f"streaming, {words.plural(record.pieces, 'event')}"
    elif story.tries:
        doing = "waiting for the answer" + (f", try {story.tries}" if story.tries > 1 else "")
    else:
        doing = "waiting for an account"
    return Live(
        record.id,
        record.seconds,
        record.endpoint,
        record.key or "–",
        story.model,
        story.account or "–",
        doing,
    )


def _history(
    connection: sqlite3.Connection, *, now: float, period: Period
) -> tuple[list[Slot], list[Speed], Speed]:
    """A question to the ledger: sums and speeds along time, and the speed of all."""
    span, pieces = (now - period.seconds, now + 1), period.pieces
    whole = history.speeds(connection, *span, 1)[0]
    return history.slots(connection, *span, pieces), history.speeds(connection, *span, pieces), whole


def _totals(slots: list[Slot], whole: Speed) -> dict[str, Any]:
    """The sums of a span, and its speed."""
    requests, failed = sum(slot.requests for slot in slots), sum(slot.failed for slot in slots)
    return {
        "requests": requests,
        "failed": failed,
        "rate": f"{failed / requests:.1%}" if requests else "–",
        "left": sum(slot.left for slot in slots),
        "prompt_tokens": sum(slot.prompt_tokens for slot in slots),
        "completion_tokens": sum(slot.completion_tokens for slot in slots),
        "cost": sum(slot.cost for slot in slots),
        "first_byte": whole.first_byte[0] if whole.first_byte else None,
    }


def _charts(slots: list[Slot], speeds: list[Speed], period: Period) -> list[Chart]:
    times = [words.clock(slot.begins, period.seconds) for slot in slots]
    if period.seconds > 2 * words.DAY:
        times = [f"{when} {words.clock(slot.begins, 0)}" for when, slot in zip(times, slots, strict=True)]
    outcomes = [(slot.ok, slot.left, slot.failed) for slot in slots]
    tokens = [(slot.prompt_tokens, slot.completion_tokens) for slot in slots]
    return [
        charts.bars("Requests", ("answered", "left by the client", "failed"), times, outcomes, words.number),
        charts.bars("Tokens", ("in", "out"), times, tokens, words.number),
        charts.bars("Errors", ("failed",), times, [(slot.failed,) for slot in slots], words.number),
        _latency("Time to the first event", times, [speed.first_byte for speed in speeds]),
        _latency("Whole time", times, [speed.total for speed in speeds]),
    ]


def _latency(name: str, times: list[str], pairs: list[tuple[float, float] | None]) -> Chart:
    values = [pair or (None, None) for pair in pairs]
    return charts.steps(name, ("median", "95th percentile"), times, values, words.milliseconds)
