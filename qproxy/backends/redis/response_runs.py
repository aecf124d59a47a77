"""Runs of responses and their events for all processes of all machines; events are sealed in batches.

A lease is a time of the server's clock. An append without a reply may be sent again: events of the same
numbers replace each other.
"""

from __future__ import annotations

from collections.abc import Awaitable, Iterator, Sequence

from qproxy.backends.redis.client import RedisClient
from qproxy.backends.redis.connection import Argument
from qproxy.backends.redis.records import OWNERS, SealedRecords
from qproxy.backends.redis.script import Script, load_script
from qproxy.backends.redis.sealing import Sealer
from qproxy.server.response_runs import RecordedStream, RunEvents, RunNotFound, RunSignal, RunState

RUNS = load_script("response_runs")
EVENT_SECONDS = 3600
"""For which events are stored after the end of a response."""
LIST_SECONDS = 86400.0
"""For which a run is listed under its owner."""
MAX_RUN_BYTES = 16 * 1024 * 1024
"""Bytes of the sealed events of one response; beyond it the oldest are deleted."""
BATCH_BYTES = 64 * 1024
READ_BYTES = 256 * 1024
"""Bytes of sealed events in one reply, at least."""


class RedisResponseRuns:
    """The store."""

    def __init__(
        self, client: RedisClient, sealer: Sealer, *, scripts: Sequence[Script] = (RUNS, OWNERS)
    ) -> None:
        self._records = SealedRecords(client, sealer, "e", *scripts)

    def __repr__(self) -> str:
        return f"<RedisResponseRuns {self._records!r}>"

    async def start(self, owner: str, id: str, events: Sequence[bytes], lease: float) -> None:
        batches = await self._seal(owner, id, 0, events)
        await self._records.add_name(owner, id, LIST_SECONDS)
        await self._records.run(owner, id, "start", EVENT_SECONDS, lease, MAX_RUN_BYTES, *batches)

    async def append(
        self, owner: str, id: str, first: int, events: Sequence[bytes], lease: float
    ) -> RunSignal:
        batches = await self._seal(owner, id, first, events)
        arguments = (lease, MAX_RUN_BYTES, first, *batches)
        reply = await self._records.run(owner, id, "append", EVENT_SECONDS, *arguments)
        return RunSignal(reply.decode())

    async def finish(self, owner: str, id: str) -> bool:
        return bool(await self._records.run(owner, id, "finish", EVENT_SECONDS))

    async def request_cancel(self, owner: str, id: str) -> bool:
        return bool(await self._records.run(owner, id, "cancel", EVENT_SECONDS))

    async def end_lost(self, owner: str, id: str) -> bool:
        return bool(await self._records.run(owner, id, "lost", EVENT_SECONDS))

    async def save_streams(self, streams: Sequence[RecordedStream]) -> None:
        for stream in streams:
            batches = await self._seal(stream.owner, stream.id, 0, stream.events)
            await self._records.add_name(stream.owner, stream.id, LIST_SECONDS)
            arguments = (EVENT_SECONDS, MAX_RUN_BYTES, *batches)
            await self._records.run(stream.owner, stream.id, "save", *arguments)

    async def read(self, owner: str, id: str, after: int) -> RunEvents:
        start = after + 1
        reply = await self._records.run(owner, id, "read", EVENT_SECONDS, start, READ_BYTES)
        if not reply:
            raise RunNotFound(id)
        state, next_number, *batches = reply
        events: list[bytes] = []
        first = max(start, 0)
        for number, sealed in zip(batches[::2], batches[1::2], strict=True):
            (text,) = await self._records.open((self._name(owner, id, number), sealed))
            batch = [event + b"\n\n" for event in text.split(b"\n\n")[:-1]][max(start - number, 0) :]
            first = first if events or not batch else max(number, start)
            events += batch
        return RunEvents(RunState(state.decode()), first, events, next_number)

    async def delete(self, owner: str, id: str) -> None:
        await self._records.run(owner, id, "delete", EVENT_SECONDS)

    async def delete_owner(self, owner: str) -> int:
        def delete(id: str) -> Awaitable[int]:
            return self._records.run(owner, id, "delete", EVENT_SECONDS)

        return await self._records.delete_owner(owner, delete)

    async def aclose(self) -> None:
        """Close nothing: the connection is the process's."""

    async def _seal(self, owner: str, id: str, first: int, events: Sequence[bytes]) -> list[Argument]:
        """Return the events in batches: the number of the first event, the count, and the batch of each."""
        found: list[Argument] = []
        for number, batch in _batches(first, events):
            sealed = await self._records.seal(b"".join(batch), self._name(owner, id, number))
            found += [number, len(batch), sealed]
        return found

    def _name(self, owner: str, id: str, first: int) -> str:
        return f"{self._records.key(owner, id)}:{first}"


def _batches(first: int, events: Sequence[bytes]) -> Iterator[tuple[int, Sequence[bytes]]]:
    """Yield the events in batches of a limited size, each with the number of its first event."""
    start = size = 0
    for end, event in enumerate(events, 1):
        size += len(event)
        if size >= BATCH_BYTES or end == len(events):
            yield first + start, events[start:end]
            start, size = end, 0
