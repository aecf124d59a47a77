"""Usage as the ledger reports it.

Sums by key, account or model over a window; sums and latencies along time; single requests as mappings of
columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from qproxy.ledger.units import UNITS
from qproxy.limits.token_bucket import REQUESTS, TOKENS, USD, Amounts

GroupBy: TypeAlias = Literal["key", "account", "model"]
RequestRow: TypeAlias = Mapping[str, Any]
"""One request, by the columns of `rows`."""
FILTERS = ("key", "account", "model", "outcome")
"""The columns by which requests can be filtered."""
ALL_TIME = "all"
"""In place of a window: everything in the ledger."""


@dataclass(frozen=True, slots=True)
class UsageRow:
    """The usage of one key, account or model within a window."""

    name: str
    window: str
    requests: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0
    """US dollars, estimated."""
    unpriced: int = 0
    """Requests without a known price, which `cost` does not include."""
    characters: float = 0
    seconds: float = 0.0
    images: float = 0
    documents: float = 0
    searches: float = 0
    saved: float = 0.0
    """US dollars that the cache and the flex tier have saved, of the requests with a known price."""

    @property
    def units(self) -> dict[str, float]:
        """Return what was used beside tokens."""
        return {unit: amount for unit in UNITS if (amount := getattr(self, unit))}

    @property
    def known_cost(self) -> float | None:
        """Return the cost, None if no request's price is known."""
        return None if self.unpriced and not self.cost else self.cost

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    @property
    def amounts(self) -> Amounts:
        """Return what budgets count."""
        return {REQUESTS: self.requests, TOKENS: self.tokens, USD: self.cost}


@dataclass(frozen=True, slots=True)
class WindowUsage:
    """The usage of one key within a window; times are Unix seconds."""

    start: float
    used: Amounts
    resets_at: float
    """When something is available again."""


@dataclass(frozen=True, slots=True)
class TimeSlot:
    """The requests that ended within a part of a period."""

    start: float
    requests: int = 0
    failed: int = 0
    """Without a complete response, unless the client disconnected."""
    disconnected: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0
    unpriced: int = 0
    """Requests without a known price, which `cost` does not include."""
    saved: float = 0.0

    @property
    def ok(self) -> int:
        return self.requests - self.failed - self.disconnected


@dataclass(frozen=True, slots=True)
class LatencySlot:
    """Latencies of the successful responses of a part of a period, in milliseconds; None without any."""

    start: float
    first_byte: tuple[float, float] | None = None
    """Median and 95th percentile of the time to a response's first event."""
    total: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class History:
    """A period in equal parts, and the latency of all of it."""

    slots: list[TimeSlot]
    latencies: list[LatencySlot]
    overall: LatencySlot
