"""Whether the server can do its work: one state, for `/readyz`, the metrics and whoever shows it to people.

    ready      an account can serve, or would be asked: one that rests is, when it is alone
    unusable   none is asked now: the servers of all of them are down
    draining   the server stops; nothing new should come

Pure: the accounts say how they are, this says what follows.  `/livez` asks nobody: a process that answers is alive.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

STATES = ("ready", "unusable", "draining")
SERVING = frozenset(("ready", "full", "paced"))
"""States of an account that can serve, now or in a moment."""
LAST_RESORT = SERVING | {"resting"}
"""States in which it is asked when there is no other."""


@dataclass(frozen=True, slots=True)
class Health:
    """How the server is."""

    state: str
    accounts: dict[str, int]
    """How many accounts are in each state."""

    @property
    def usable(self) -> int:
        """How many can serve, now or in a moment."""
        return sum(self.accounts.get(state, 0) for state in SERVING)

    @property
    def ready(self) -> bool:
        return self.state == "ready"


def health(accounts: Iterable[str], *, draining: bool) -> Health:
    """The server's state from the states of its accounts."""
    states = Counter(accounts)
    request = any(states[state] for state in LAST_RESORT)
    return Health("draining" if draining else "ready" if request else "unusable", dict(states))
