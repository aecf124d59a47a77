"""Whether the server can do its work: one state, for `/readyz`, the metrics and whoever shows it to people.

    ready      an account can serve
    unusable   none can now: all of them rest, have failed, or need their owner
    draining   the server stops; nothing new should come

Pure: the accounts say how they are, this says what follows.  `/livez` asks nobody: a process that answers is alive.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

STATES = ("ready", "unusable", "draining")
SERVING = frozenset(("ready", "full"))
"""States of an account that can serve, now or in a moment."""


@dataclass(frozen=True, slots=True)
class Health:
    """How the server is."""

    state: str
    accounts: dict[str, int]
    """How many accounts are in each state."""

    @property
    def ready(self) -> bool:
        return self.state == "ready"


def health(accounts: Iterable[str], *, draining: bool) -> Health:
    """The server's state from the states of its accounts."""
    states = Counter(accounts)
    usable = any(states[state] for state in SERVING)
    return Health("draining" if draining else "ready" if usable else "unusable", dict(states))
