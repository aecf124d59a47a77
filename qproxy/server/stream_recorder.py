"""The events of streamed responses, saved after their end: a client whose connection broke reads them again.

Events are copied in memory while they are sent, within a bound for all streams of the process, and saved a
moment later, those of several streams in one step: so they cost neither the client time nor each stream a
write of its own. A stream that ended because its client disconnected is stored as a cancelled response.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import trio

from qproxy.server.response_runs import RecordedStream, ResponseRunStore
from qproxy.server.response_store import ResponseStore, ResponseStoreError, StoredResponse
from qproxy.wire.endpoints.responses import FrameLog

MAX_BYTES = 64 * 1024 * 1024
"""Bytes of events in the memory of a process."""
MAX_STREAM_BYTES = 4 * 1024 * 1024
"""Bytes of events of one stream."""
SAVE_SECONDS = 1.0
"""Seconds for which ended streams are collected."""
log = logging.getLogger("qproxy.server")


@dataclass(frozen=True, slots=True)
class EndedStream:
    """A stream that has ended, and the stores where it is saved."""

    owner: str
    id: str
    frames: FrameLog
    runs: ResponseRunStore
    responses: ResponseStore
    response: StoredResponse | None
    """The response, unless it is stored already."""


class StreamRecorder:
    """Records streams, and saves those that have ended."""

    def __init__(self, max_bytes: int = MAX_BYTES, max_stream_bytes: int = MAX_STREAM_BYTES) -> None:
        self._available = max_bytes
        self._max_stream_bytes = max_stream_bytes
        self._ended: list[EndedStream] = []
        self._has_ended = trio.Event()
        self._lock = trio.Lock()

    def __repr__(self) -> str:
        return f"<StreamRecorder, {len(self._ended)} streams to save>"

    def begin(self) -> FrameLog:
        """Return a log for the frames of a stream; it is passed to `add` or `discard`."""
        frames = FrameLog(lambda size: self._reserve(frames, size))
        return frames

    def add(self, stream: EndedStream) -> None:
        """Save a stream soon."""
        if stream.frames.measure():
            self._ended.append(stream)
            self._has_ended.set()
        else:
            self.discard(stream.frames)

    def discard(self, frames: FrameLog) -> None:
        """Forget the frames of a stream."""
        self._available += frames.size
        frames.frames, frames.size = [], 0

    async def run(self) -> None:
        """Save streams as they end."""
        while True:
            await self._has_ended.wait()
            await trio.sleep(SAVE_SECONDS)
            await self.flush()

    async def flush(self) -> None:
        """Save every stream that has ended."""
        async with self._lock:
            if not self._ended:
                return
            ended, self._ended, self._has_ended = self._ended, [], trio.Event()
            with trio.CancelScope(shield=True):  # each operation of a store has its own time limit
                for stream in ended:
                    await self._save(stream)
                for runs in {id(stream.runs): stream.runs for stream in ended}.values():
                    await self._save_events(runs, [stream for stream in ended if stream.runs is runs])
            for stream in ended:
                self.discard(stream.frames)

    async def _save(self, stream: EndedStream) -> None:
        if stream.response is not None:
            try:
                await stream.responses.save(stream.response)
            except ResponseStoreError as error:
                log.warning("response %s: it is not kept: %s", stream.id, error)

    async def _save_events(self, runs: ResponseRunStore, streams: list[EndedStream]) -> None:
        recorded = [RecordedStream(one.owner, one.id, one.frames.frames) for one in streams]
        try:
            await runs.save_streams(recorded)
        except ResponseStoreError as error:
            log.warning("the events of %d responses are not stored: %s", len(recorded), error)

    def _reserve(self, frames: FrameLog, size: int) -> bool:
        if size > self._available or frames.size + size > self._max_stream_bytes:
            return False
        self._available -= size
        return True
