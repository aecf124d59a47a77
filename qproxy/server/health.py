"""The server's health: one state, for `/readyz`, the metrics and the dashboard.

    ready      an account can serve, or would be tried: one in cooldown is, if there is no other
    unusable   no account would be tried now: all their upstreams are down
    draining   the server is shutting down; clients should not send new requests

Pure: it derives the state from the accounts' states. `/livez` depends on nothing: a process that responds is
alive.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

STATES = ("ready", "unusable", "draining")
SERVING = frozenset(("ready", "at_capacity", "rate_limited"))
"""States of an account that can serve, now or soon."""
LAST_RESORT = SERVING | {"cooling_down"}
"""States in which it is tried if there is no other."""


@dataclass(frozen=True, slots=True)
class Health:
    """The state of the server."""

    state: str
    accounts: dict[str, int]
    """Number of accounts in each state."""

    @property
    def usable(self) -> int:
        """Number of accounts that can serve, now or soon."""
        return sum(self.accounts.get(state, 0) for state in SERVING)

    @property
    def ready(self) -> bool:
        return self.state == "ready"


def health(accounts: Iterable[str], *, draining: bool) -> Health:
    """Return the server's state from those of its accounts."""
    states = Counter(accounts)
    last_resort = any(states[state] for state in LAST_RESORT)
    return Health("draining" if draining else "ready" if last_resort else "unusable", dict(states))
