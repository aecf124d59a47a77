"""Finished requests: a paged list, and a page per request.

A page of the list starts where the previous one ended, by time and id, so new requests do not shift it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

from qproxy.dashboard import summaries
from qproxy.dashboard.auth import PageRequest
from qproxy.dashboard.rendering import PageRenderer
from qproxy.dashboard.views import ledger
from qproxy.dashboard.views.ledger import LedgerUnavailable
from qproxy.ledger.usage import FILTERS
from qproxy.server.http_response import HTTPResponse
from qproxy.server.state import StateHolder
from qproxy.wire.errors import RequestError

PAGE = 50


class RequestPages:
    """The list and the page of one request."""

    def __init__(self, server: StateHolder, pages: PageRenderer, wall_clock: Callable[[], float]) -> None:
        self._server = server
        self._pages = pages
        self._wall_clock = wall_clock

    def views(self) -> Iterator[tuple[str, str, Callable[..., Awaitable[HTTPResponse]]]]:
        yield "GET", "/requests", self._list
        yield "GET", "/requests/<id>", self._one

    async def _list(self, visit: PageRequest) -> HTTPResponse:
        only = {name: visit.query[name] for name in FILTERS if visit.query.get(name)}
        before = _cursor(visit.query.get("before", ""))
        found = await ledger.ask(
            self._server.state, lambda file: file.recent_requests(PAGE + 1, before=before, only=only)
        )
        rows = [] if isinstance(found, LedgerUnavailable) else found
        older = ""
        if len(rows) > PAGE:
            last = rows[PAGE - 1]
            older = urlencode({**only, "before": f"{last['ended']!r}_{last['id']}"})
        return self._pages.page(
            visit,
            "requests.html",
            rows=request_rows(rows[:PAGE]),
            trouble=found.message if isinstance(found, LedgerUnavailable) else "",
            only=only,
            columns=FILTERS,
            outcomes=summaries.OUTCOMES,
            older=older,
            paged="before" in visit.query,
            now=self._wall_clock(),
        )

    async def _one(self, visit: PageRequest, id: str) -> HTTPResponse:
        found = await ledger.ask(self._server.state, lambda file: file.request(id))
        if isinstance(found, LedgerUnavailable):
            raise RequestError(found.message, status=503, code="ledger_unavailable")
        if found is None:
            message = "Unknown request: it may still be in flight, or it is older than the retention."
            raise RequestError(message, status=404, code="request_not_found")
        return self._pages.page(
            visit, "request.html", row=request_row(found), story=summaries.summarize(found)
        )


def request_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row with a label of its outcome."""
    return {**row, "label": summaries.outcome_label(row), "level": summaries.level(row)}


def request_rows(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [request_row(row) for row in rows]


def _cursor(text: str) -> tuple[float, str] | None:
    """Parse the position of a page; None for the first page or invalid text."""
    ended, _, id = text.partition("_")
    try:
        return (float(ended), id) if id else None
    except ValueError:
        return None
