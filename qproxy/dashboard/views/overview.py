"""The overview: the server's health, requests in flight, and charts of a period.

The live part (`/dashboard/live`) is about this process and is reloaded by the page's script. The rest comes
from the ledger.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any

from qproxy.dashboard import charts, formatting
from qproxy.dashboard.auth import PageRequest
from qproxy.dashboard.charts import Chart
from qproxy.dashboard.rendering import PageRenderer
from qproxy.dashboard.views import ledger
from qproxy.dashboard.views.accounts import AccountPages
from qproxy.dashboard.views.ledger import LedgerUnavailable
from qproxy.dashboard.views.requests import request_rows
from qproxy.ledger.usage import LatencySlot, TimeSlot
from qproxy.server.http_response import HTTPResponse
from qproxy.server.state import StateHolder
from qproxy.telemetry.records import RequestRecord

RECENT = 8
MAX_LIVE = 50


@dataclass(frozen=True, slots=True)
class ChartPeriod:
    """A selectable period."""

    name: str
    label: str
    seconds: float
    slots: int

    def span(self, now: float) -> tuple[float, float]:
        """Return the start and the end of the period around `now`, both on whole slots of UTC."""
        width = self.seconds / self.slots
        until = (now // width + 1) * width
        return until - self.seconds, until


PERIODS = {
    period.name: period
    for period in (
        ChartPeriod("1h", "hour", 3600, 60),
        ChartPeriod("24h", "24 hours", 86400, 48),
        ChartPeriod("7d", "7 days", 7 * 86400, 56),
        ChartPeriod("30d", "30 days", 30 * 86400, 60),
    )
}
STATES = {
    "ready": "Ready",
    "unusable": "No account is available",
    "draining": "Shutting down: new requests are rejected",
}


@dataclass(frozen=True, slots=True)
class LiveRequest:
    """A request in flight."""

    id: str
    age: float
    endpoint: str
    key: str
    model: str
    account: str
    activity: str


class OverviewPages:
    """The page and its live part."""

    def __init__(self, server: StateHolder, pages: PageRenderer, wall_clock: Callable[[], float]) -> None:
        self._server = server
        self._pages = pages
        self._wall_clock = wall_clock
        self._accounts = AccountPages(server, pages, wall_clock)

    def views(self) -> Iterator[tuple[str, str, Callable[..., Awaitable[HTTPResponse]]]]:
        yield "GET", "", self._page
        yield "GET", "/live", self._live

    async def _page(self, visit: PageRequest) -> HTTPResponse:
        period, now = PERIODS.get(visit.query.get("period", ""), PERIODS["24h"]), self._wall_clock()
        since, until = period.span(now)
        found = await ledger.ask(self._server.state, lambda file: file.history(since, until, period.slots))
        recent = await ledger.ask(self._server.state, lambda file: file.recent_requests(RECENT))
        replicas, of_all_machines = await self._server.state.replicas()
        drawn, totals = (
            ([], None)
            if isinstance(found, LedgerUnavailable)
            else (_charts(found.slots, found.latencies, period), _totals(found.slots, found.overall))
        )
        return self._pages.page(
            visit,
            "overview.html",
            period=period,
            periods=PERIODS.values(),
            charts=drawn,
            totals=totals,
            trouble=found.message if isinstance(found, LedgerUnavailable) else "",
            recent=[] if isinstance(recent, LedgerUnavailable) else request_rows(recent),
            accounts=self._accounts.cards(now),
            replicas=replicas,
            of_all_machines=of_all_machines,
            shares=self._server.state.shared_state is not None,
            now=now,
            **self._in_flight_rows(),
        )

    async def _live(self, visit: PageRequest) -> HTTPResponse:
        return self._pages.page(visit, "live.html", **self._in_flight_rows())

    def _in_flight_rows(self) -> dict[str, Any]:
        health = self._server.state.health()
        live = [
            _live(record) for record in self._server.state.counters.in_flight.values() if record.relay.model
        ]
        return {
            "live": live[-MAX_LIVE:][::-1],
            "in_flight_count": len(live),
            "waiting": self._server.state.concurrency.queue_size
            + self._server.state.relay.accounts.queue_size,
            "health": STATES[health.state],
            "health_level": ("ok" if health.usable else "unknown") if health.ready else "error",
            "account_states": sorted(health.accounts.items()),
            "account_count": sum(health.accounts.values()),
        }


def _live(record: RequestRecord) -> LiveRequest:
    relay = record.relay
    if record.first_byte is not None and record.stream:
        activity = f"streaming, {formatting.plural(record.chunks, 'event')}"
    elif relay.attempts:
        activity = "waiting for the upstream" + (f", attempt {relay.attempts}" if relay.attempts > 1 else "")
    else:
        activity = "waiting for an account"
    return LiveRequest(
        record.id,
        record.seconds,
        record.endpoint,
        record.key or "–",
        relay.model,
        relay.account or "–",
        activity,
    )


def _totals(slots: list[TimeSlot], whole: LatencySlot) -> dict[str, Any]:
    """Return the sums and latencies of a period."""
    requests, failed = sum(slot.requests for slot in slots), sum(slot.failed for slot in slots)
    return {
        "requests": requests,
        "failed": failed,
        "rate": f"{failed / requests:.1%}" if requests else "–",
        "left": sum(slot.disconnected for slot in slots),
        "prompt_tokens": sum(slot.prompt_tokens for slot in slots),
        "completion_tokens": sum(slot.completion_tokens for slot in slots),
        "cost": formatting.format_cost(
            sum(slot.cost for slot in slots), sum(slot.unpriced for slot in slots)
        ),
        "saved": formatting.format_money(sum(slot.saved for slot in slots))
        if any(slot.saved for slot in slots)
        else "",
        "first_byte": whole.first_byte[0] if whole.first_byte else None,
    }


def _charts(slots: list[TimeSlot], speeds: list[LatencySlot], period: ChartPeriod) -> list[Chart]:
    times = [formatting.format_clock(slot.start, period.seconds) for slot in slots]
    if period.seconds > 2 * formatting.DAY:
        times = [
            f"{when} {formatting.format_clock(slot.start, 0)}"
            for when, slot in zip(times, slots, strict=True)
        ]
    outcomes = [(slot.ok, slot.disconnected, slot.failed) for slot in slots]
    tokens = [(slot.prompt_tokens, slot.completion_tokens) for slot in slots]
    return [
        charts.stacked_bars(
            "Requests",
            ("answered", "client disconnected", "failed"),
            times,
            outcomes,
            formatting.format_number,
        ),
        charts.stacked_bars("Tokens", ("in", "out"), times, tokens, formatting.format_number),
        charts.stacked_bars(
            "Errors", ("failed",), times, [(slot.failed,) for slot in slots], formatting.format_number
        ),
        _latency("Time to first event", times, [speed.first_byte for speed in speeds]),
        _latency("Total time", times, [speed.total for speed in speeds]),
    ]


def _latency(name: str, times: list[str], pairs: list[tuple[float, float] | None]) -> Chart:
    values = [pair or (None, None) for pair in pairs]
    return charts.step_chart(
        name, ("median", "95th percentile"), times, values, formatting.format_milliseconds
    )
