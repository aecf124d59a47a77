"""The reuse of prefixes: how soon they come again, and what a server's implicit cache reads of them.

Everything is in the memory of one process and bounded; a prefix is 12 bytes of a hash.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from qproxy.wire.prompt_cache.prefixes import Prefix, Prefixes

FIVE_MINUTES, HOUR = 300.0, 3600.0
MAX_PREFIXES = 20_000
MAX_ROOTS = 2_000
MAX_REQUESTS = 64
"""Requests after which the counts of a root are halved, so that they follow what its program does now."""
MEASUREMENT_LIFE = 6 * HOUR
"""Seconds after which the implicit cache of a server is measured again."""
MEASUREMENT_SHARE = 0.3
"""Share of each new measurement."""


@dataclass(slots=True)
class _Known:
    """A prefix that was sent."""

    seen: float
    explicit_until: float = 0.0
    continued: bool = False
    """Whether a later request has begun with it, within an hour."""


@dataclass(slots=True)
class Counts:
    """Counts of the requests with one root: those that were continued, and the returns of the root."""

    requests: float = 0.0
    continued: float = 0.0
    """Within five minutes."""
    continued_later: float = 0.0
    """Within an hour, those within five minutes among them."""
    again: float = 0.0
    again_later: float = 0.0

    def share(self, count: float) -> float:
        """Return the share of a count; one unknown request counts against it."""
        return min(1.0, count / (self.requests + 1))

    def add(self, continued_after: float, again_after: float) -> None:
        """Count a request that came so many seconds after the one it continues, and after its root."""
        self.continued += continued_after <= FIVE_MINUTES
        self.continued_later += continued_after <= HOUR
        self.again += again_after <= FIVE_MINUTES
        self.again_later += again_after <= HOUR

    def halve(self) -> None:
        """Let older requests count half."""
        for name in self.__slots__:
            setattr(self, name, getattr(self, name) / 2)


@dataclass(frozen=True, slots=True)
class Sighting:
    """The knowledge of a request's prefixes when it arrives."""

    known: Prefix | None
    """The longest prefix that was sent within five minutes."""
    explicit: Prefix | None
    """The longest prefix that an explicit cache has."""
    counts: Counts


class ReuseTable:
    """The prefixes that were sent."""

    def __init__(self) -> None:
        self._known: OrderedDict[bytes, _Known] = OrderedDict()
        self._counts: OrderedDict[bytes, Counts] = OrderedDict()
        self._implicit: OrderedDict[str, tuple[float, float]] = OrderedDict()
        """The share that the implicit cache read of what it could have, and when that was measured."""

    def __repr__(self) -> str:
        return f"<ReuseTable of {len(self._known)} prefixes>"

    def observe(self, prefixes: Prefixes, now: float) -> Sighting:
        """Return what is known of a request's prefixes, and count it."""
        steps, root = prefixes.steps, prefixes.root
        found = [(step, self._known[step.digest]) for step in steps if step.digest in self._known]
        recent = [step for step, entry in found if now - entry.seen <= FIVE_MINUTES]
        explicit = [step for step, entry in found if entry.explicit_until > now]
        counts = self._counts_of(root.digest if root else b"")
        if not found or found[-1][0] is not steps[-1] or len(steps) == 1:  # else it is sent again
            self._count(counts, root, found, now)
        self._see(steps[-1].digest, now)
        if root is not None:
            self._see(root.digest, now)
        return Sighting(recent[-1] if recent else None, explicit[-1] if explicit else None, counts)

    def mark_written(self, prefix: Prefix, until: float) -> None:
        """Remember that an explicit cache has a prefix until then."""
        entry = self._known.setdefault(prefix.digest, _Known(until))
        entry.explicit_until = max(entry.explicit_until, until)
        self._trim()

    def implicit_share(self, scope: str, now: float) -> float | None:
        """Return the share of repeated tokens that the implicit cache reads; None if it is not measured."""
        share, measured = self._implicit.get(scope, (0.0, -MEASUREMENT_LIFE))
        return None if now - measured >= MEASUREMENT_LIFE else share

    def measure_implicit(self, scope: str, share: float, now: float) -> None:
        """Add a measurement of the implicit cache."""
        before = self.implicit_share(scope, now)
        share = share if before is None else before + (share - before) * MEASUREMENT_SHARE
        self._implicit.pop(scope, None)
        self._implicit[scope] = share, now
        if len(self._implicit) > MAX_ROOTS:
            self._implicit.popitem(last=False)

    def _counts_of(self, root: bytes) -> Counts:
        counts = self._counts.pop(root, None) or Counts()
        self._counts[root] = counts
        if len(self._counts) > MAX_ROOTS:
            self._counts.popitem(last=False)
        return counts

    def _count(
        self, counts: Counts, root: Prefix | None, found: list[tuple[Prefix, _Known]], now: float
    ) -> None:
        never = float("inf")
        again = next((now - entry.seen for step, entry in found if step is root), never)
        continued = never
        longer = [entry for step, entry in found if step is not root]
        if longer and not longer[-1].continued:
            continued = now - longer[-1].seen
            longer[-1].continued = True
        if counts.requests >= MAX_REQUESTS:
            counts.halve()
        counts.add(continued, again)
        counts.requests += 1

    def _see(self, digest: bytes, now: float) -> None:
        entry = self._known.pop(digest, None) or _Known(now)
        entry.seen = now
        self._known[digest] = entry
        self._trim()

    def _trim(self) -> None:
        while len(self._known) > MAX_PREFIXES:
            self._known.popitem(last=False)
