"""What was asked and what came of it: the newest requests, and each one's story.

A page of the list begins where the one before ended, by time and id, so that requests that come meanwhile move
nothing.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any
from urllib.parse import urlencode

from qproxy.dashboard import summaries as stories
from qproxy.dashboard.auth import Visit
from qproxy.dashboard.rendering import Pages
from qproxy.dashboard.views import ledger
from qproxy.dashboard.views.ledger import Told
from qproxy.ledger import history
from qproxy.server.http_response import Reply
from qproxy.server.state import Parts
from qproxy.wire.errors import RequestError

PAGE = 50


class RequestPages:
    """The list and the stories."""

    def __init__(self, parts: Parts, pages: Pages, wall: Callable[[], float]) -> None:
        self._parts = parts
        self._pages = pages
        self._wall = wall

    def views(self) -> Iterator[tuple[str, str, Callable[..., Awaitable[Reply]]]]:
        yield "GET", "/requests", self._list
        yield "GET", "/requests/<id>", self._one

    async def _list(self, visit: Visit) -> Reply:
        only = {name: visit.query[name] for name in history.COLUMNS if visit.query.get(name)}
        question = partial(
            history.requests, limit=PAGE + 1, before=_cursor(visit.query.get("before", "")), only=only
        )
        found = await ledger.ask(self._parts, question)
        rows = [] if isinstance(found, Told) else found
        older = ""
        if len(rows) > PAGE:
            last = rows[PAGE - 1]
            older = urlencode({**only, "before": f"{last['ended']!r}_{last['id']}"})
        return self._pages.page(
            visit,
            "requests.html",
            rows=lines(rows[:PAGE]),
            trouble=found.words if isinstance(found, Told) else "",
            only=only,
            columns=history.COLUMNS,
            outcomes=stories.OUTCOMES,
            older=older,
            paged="before" in visit.query,
            now=self._wall(),
        )

    async def _one(self, visit: Visit, id: str) -> Reply:
        found = await ledger.ask(self._parts, partial(history.request, id=id))
        if isinstance(found, Told):
            raise RequestError(found.words, status=503, code="ledger_unavailable")
        if found is None:
            message = "The ledger knows no such request: it may be under way still, or too old."
            raise RequestError(message, status=404, code="request_not_found")
        return self._pages.page(visit, "request.html", row=line(found), story=stories.story(found))


def line(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row with its outcome in words."""
    return {**row, "told": stories.outcome(row), "level": stories.level(row)}


def lines(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [line(row) for row in rows]


def _cursor(text: str) -> tuple[float, str] | None:
    """Where a page of the list goes on; None for the first page, and for words that name no place."""
    ended, _, id = text.partition("_")
    try:
        return (float(ended), id) if id else None
    except ValueError:
        return None
