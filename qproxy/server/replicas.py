"""The processes that serve together: those of all machines with `shared_state`, otherwise this machine's
workers.

Each describes itself; the dashboard and `qproxy check` list them.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Protocol

from qproxy.telemetry.peers import Peers
from qproxy.version import VERSION

REPLICA_QUERY = "replica"
STARTED_AT = time.time()


@dataclass(frozen=True, slots=True)
class Replica:
    """One process."""

    machine: str
    pid: int
    version: str
    since: float
    """Unix time of its start."""
    in_flight: int
    """Requests in flight."""
    beat_at: float | None = None
    """Unix time of its last sign of life; None for a process that has just replied."""

    def to_json(self) -> str:
        """Return the description that other processes read."""
        return json.dumps(asdict(self))


def parse_replica(text: str | bytes, beat_at: float | None = None) -> Replica | None:
    """Return a process that describes itself; None if another version does so in another way."""
    try:
        found = json.loads(text)
        known = {field.name: found[field.name] for field in fields(Replica) if field.name in found}
        return Replica(**{**known, "beat_at": beat_at})
    except (ValueError, TypeError, AttributeError):
        return None


@dataclass(frozen=True, slots=True)
class SharedStateStatistics:
    """The figures of the server that machines share, for the metrics."""

    is_connected: bool
    outbox: int
    """Subjects of limits with changes that the server does not have yet."""
    commands: Mapping[str, int]
    """Commands by outcome: ok, error (its reply), unknown (no reply), unavailable (not sent)."""
    seconds: float
    """Between commands and their replies, over all commands."""


class SharedStateMonitor(Protocol):
    """A view of the server that machines share, for operators."""

    def describe_process(self, describe: Callable[[], str]) -> None:
        """Use a description of this process for the others."""
        ...

    async def replicas(self) -> Sequence[Replica] | None:
        """Return the processes that the server has seen; None while it cannot be used."""
        ...

    async def require_compatible(self) -> None:
        """Raise ConfigError if the server's data is of a version that this program cannot read."""
        ...

    def statistics(self) -> SharedStateStatistics: ...


def this_replica(in_flight: int) -> Replica:
    """Return this process."""
    return Replica(platform.node(), os.getpid(), VERSION, STARTED_AT, in_flight)


async def list_replicas(
    own: Replica, peers: Peers, monitor: SharedStateMonitor | None
) -> tuple[Sequence[Replica], bool]:
    """Return the processes that serve together, and whether those of other machines are among them."""
    found = None if monitor is None else await monitor.replicas()
    if found is not None:
        return sorted(found, key=lambda each: (each.machine, each.pid)), True
    answers = await peers.query(REPLICA_QUERY)
    workers = [own, *filter(None, map(parse_replica, filter(None, answers)))]
    return sorted(workers, key=lambda each: each.pid), False
