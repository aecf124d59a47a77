"""Queries of a ledger as methods: each runs one function of a member's module of SQL with its connection."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Generic, Protocol, TypeVar

from qproxy.ledger.usage import GroupBy, History, RequestRow, UsageRow, WindowUsage

C = TypeVar("C")
CQuery = TypeVar("CQuery", contravariant=True)
T = TypeVar("T")


class QueryFunctions(Protocol[CQuery]):
    """The functions of a module of SQL: one for each query, which takes an open connection."""

    def usage_windows(
        self, connection: CQuery, /, by: GroupBy, windows: Sequence[str], now: float
    ) -> Mapping[str, Sequence[UsageRow]]: ...

    def key_usage(
        self, connection: CQuery, /, key: str, windows: Collection[str], now: float
    ) -> Mapping[str, WindowUsage]: ...

    def history(self, connection: CQuery, /, since: float, until: float, count: int) -> History: ...

    def recent_requests(
        self,
        connection: CQuery,
        /,
        limit: int,
        *,
        before: tuple[float, str] | None = None,
        only: Mapping[str, str] | None = None,
    ) -> Sequence[RequestRow]: ...

    def request_by_id(self, connection: CQuery, /, id: str) -> RequestRow | None: ...


class LedgerQueries(ABC, Generic[C]):
    """The queries of a ledger, for a class that can run them."""

    functions: QueryFunctions[C]

    async def usage_by(
        self, by: GroupBy, windows: Sequence[str], now: float
    ) -> Mapping[str, Sequence[UsageRow]]:
        return await self._page(partial(self.functions.usage_windows, by=by, windows=windows, now=now))

    async def key_usage(self, key: str, windows: Collection[str], now: float) -> Mapping[str, WindowUsage]:
        return await self.query(partial(self.functions.key_usage, key=key, windows=windows, now=now))

    async def history(self, since: float, until: float, count: int) -> History:
        return await self._page(partial(self.functions.history, since=since, until=until, count=count))

    async def recent_requests(
        self,
        limit: int,
        *,
        before: tuple[float, str] | None = None,
        only: Mapping[str, str] | None = None,
    ) -> Sequence[RequestRow]:
        return await self._page(
            partial(self.functions.recent_requests, limit=limit, before=before, only=only)
        )

    async def request(self, id: str) -> RequestRow | None:
        return await self._page(partial(self.functions.request_by_id, id=id))

    @abstractmethod
    async def query(self, run: Callable[[C], T]) -> T:
        """Run a query. Raises LedgerError."""

    async def _page(self, query: Callable[[C], T]) -> T:
        """Run a query that a page needs."""
        return await self.query(query)
