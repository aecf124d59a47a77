"""The interface of response runs: responses that are generated apart from their client, and their events.

A run belongs to the process that generates its response, by a lease that the process renews. Every process
that shares the store reads its events by their `sequence_number`, and may request its cancellation. A run
whose lease has expired is lost: its process has stopped.

The events of responses that were generated for connected clients are saved after their end, several of them
in one step. Events are bounded by their size (the oldest are deleted first) and by the time since the end of
the response.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


class RunSignal(enum.Enum):
    """A signal to the process of a run."""

    CONTINUE = "continue"
    CANCEL = "cancel"
    """A client requested it."""
    STOP = "stop"
    """The run is no longer its own: it was deleted, or its lease expired and it was ended."""


class RunState(enum.Enum):
    """The state of a run, as every process sees it."""

    ACTIVE = "active"
    LOST = "lost"
    """Its lease has expired, and no process has ended it yet."""
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class RunEvents:
    """Some events of a run, in order, and its state."""

    state: RunState
    first: int
    """The number of the first of these events; without any, of the event that would follow."""
    events: list[bytes]
    """Server-sent events, each with its blank line."""
    next: int
    """The number of the first event that is not stored yet."""

    @property
    def is_last(self) -> bool:
        """Return whether no further events are stored."""
        return self.first + len(self.events) >= self.next


@dataclass(frozen=True, slots=True)
class RecordedStream:
    """All events of a response that was generated for a connected client."""

    owner: str
    id: str
    events: Sequence[bytes]


class RunNotFound(Exception):
    """The owner has no such run, or it ended too long ago."""

    def __init__(self, id: str) -> None:
        super().__init__(id)
        self.id = id


class ResponseRunStore(Protocol):
    """A store of runs. Every method may raise ResponseStoreError."""

    async def start(self, owner: str, id: str, events: Sequence[bytes], lease: float) -> None:
        """Start a run with its first events, for a process that renews it within `lease` seconds."""
        ...

    async def append(
        self, owner: str, id: str, first: int, events: Sequence[bytes], lease: float
    ) -> RunSignal:
        """Append events, of which the first has the number `first`, and renew the lease; also without events.
        Events that are stored already, by an append whose result was lost, are skipped. Nothing is appended
        once the run is no longer the process's own."""
        ...

    async def finish(self, owner: str, id: str) -> bool:
        """End a run; return whether it was active until now."""
        ...

    async def request_cancel(self, owner: str, id: str) -> bool:
        """Let the run's process cancel it; return whether the run is active."""
        ...

    async def end_lost(self, owner: str, id: str) -> bool:
        """End a run if its lease has expired; return whether it has ended, now or before. A run that is not
        found has ended."""
        ...

    async def save_streams(self, streams: Sequence[RecordedStream]) -> None:
        """Save the events of some responses, each as an ended run, in one step."""
        ...

    async def read(self, owner: str, id: str, after: int) -> RunEvents:
        """Return events with a number above `after`, as many as one read should carry; if they are not all
        stored any more, from the first one that is. Raises RunNotFound."""
        ...

    async def delete(self, owner: str, id: str) -> None:
        """Delete a run and its events, if there is one."""
        ...

    async def delete_owner(self, owner: str) -> int:
        """Delete every run of an owner, and return their number."""
        ...

    async def aclose(self) -> None: ...
