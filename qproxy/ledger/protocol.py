"""The interface of the usage ledger: what the server writes to it and asks of it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

from qproxy.ledger.prices import Pricing
from qproxy.ledger.usage import GroupBy, History, RequestRow, UsageRow, WindowUsage
from qproxy.telemetry.records import RequestRecord


class LedgerError(Exception):
    """The ledger cannot be used, or not in time; the message has the reason."""


class LedgerReader(Protocol):
    """Queries. Every method raises LedgerError. Times are Unix seconds."""

    async def usage_by(
        self, by: GroupBy, windows: Sequence[str], now: float
    ) -> Mapping[str, Sequence[UsageRow]]:
        """Return the usage within each window (one of `limits.windows`, or `ALL_TIME`), largest first."""
        ...

    async def key_usage(self, key: str, windows: Collection[str], now: float) -> Mapping[str, WindowUsage]:
        """Return what one key used within each window."""
        ...

    async def history(self, since: float, until: float, count: int) -> History:
        """Return sums and latencies of a period in `count` equal parts."""
        ...

    async def recent_requests(
        self,
        limit: int,
        *,
        before: tuple[float, str] | None = None,
        only: Mapping[str, str] | None = None,
    ) -> Sequence[RequestRow]:
        """Return the newest requests, before (time, id) if given; `only` filters by `FILTERS`."""
        ...

    async def request(self, id: str) -> RequestRow | None:
        """Return one request, None if it is not known."""
        ...

    async def aclose(self) -> None: ...


class UsageLedger(LedgerReader, Protocol):
    """The ledger of a running server: a query sees every request recorded before it."""

    def use_pricing(self, pricing: Pricing) -> None:
        """Compute the costs of further requests with these prices."""
        ...

    def record(self, record: RequestRecord) -> None:
        """Record a finished request if it named a model, or was rejected before it could. Never waits."""
        ...

    async def delete_key(self, key: str) -> int:
        """Delete the rows and sums of a client's key; return the number of requests. Raises LedgerError."""
        ...

    async def run(self) -> None:
        """Write what was recorded until cancelled, and then the rest."""
        ...
