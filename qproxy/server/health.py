"""The server's health: one state, for `/readyz`, the metrics and the dashboard.

    ready      an account works, or may: none has failed, or not yet so often that it is known to be down
    unusable   every account is known to serve no request, and is probed until it does
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
"""States of an account that works, now or soon."""
LAST_RESORT = SERVING | {"unknown", "cooling_down"}
"""States in which it is tried if there is no other."""


@dataclass(frozen=True, slots=True)
class Health:
    """The state of the server."""

    state: str
    accounts: dict[str, int]
    """Number of accounts in each state."""

    @property
    def usable(self) -> int:
        """Number of accounts that are known to work, now or soon."""
        return sum(self.accounts.get(state, 0) for state in SERVING)

    @property
    def ready(self) -> bool:
        return self.state == "ready"


def health(accounts: Iterable[str], *, draining: bool, failing_are_down: bool = True) -> Health:
    """Return the server's state from those of its accounts.

    `failing_are_down`: a probe has found that the failing accounts serve no request, and will find out when
    they do. Without one, a server that is taken out of a load balancer would never return.
    """
    states = Counter(accounts)
    usable = LAST_RESORT if failing_are_down else LAST_RESORT | {"failing"}
    last_resort = any(states[state] for state in usable)
    return Health("draining" if draining else "ready" if last_resort else "unusable", dict(states))
