"""Responses that are generated in the background: beyond their client's connection, in this process.

A run takes over its request: the exit stack with what the request has acquired (a concurrency slot, the usage
reserved for its key, the record for log and ledger) is closed when the run ends, and not when the client has
its first response. Its events are stored in small batches, which also renew the lease of this process.

A run ends by itself, by its time limit, by a shutdown after `graceful_timeout`, or by its client's
cancellation, in this process or another one. Whatever ends it closes its upstream response first, and then
stores the response in its last state. Only a run that was deleted, or that another process has declared lost,
stores nothing more.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack

import trio

from qproxy.relay.event_stream import EventStream
from qproxy.server import request_context
from qproxy.server.in_flight import InFlightRequest, shutting_down_error
from qproxy.server.request_context import RequestContext
from qproxy.server.response_runs import ResponseRunStore, RunSignal
from qproxy.server.response_store import ResponseStoreError
from qproxy.server.streaming import internal_error, record_events
from qproxy.telemetry.body_log import StreamLogger
from qproxy.wire.endpoints.responses import Encoder
from qproxy.wire.errors import QproxyError, RequestError, UpstreamError
from qproxy.wire.events import JSON

LEASE_SECONDS = 30.0
"""Seconds after which a run whose process has stopped is lost."""
RENEW_SECONDS = 1.0
"""Seconds between two renewals, and until a run learns of its cancellation by another process."""
BATCH_SECONDS = 0.1
"""Seconds for which events are collected before they are stored."""
WAIT_STATUSES = (429, 503)
"""Statuses of errors that end by themselves: rate limits, and limits of concurrent requests."""
MIN_WAIT, MAX_WAIT = 1.0, 60.0
"""Seconds that a queued response waits for an account; one that reports a longer wait fails it."""
RETRY_AFTER = 5.0
log = logging.getLogger("qproxy.server")


class BackgroundRun:
    """One response that is generated in the background."""

    def __init__(
        self,
        owner: str,
        id: str,
        *,
        store: ResponseRunStore,
        encoder: Encoder,
        in_flight: InFlightRequest,
        start: Callable[[], Awaitable[EventStream]],
        save: Callable[[JSON], Awaitable[None]],
        delete: Callable[[], Awaitable[None]],
    ) -> None:
        """`start` opens the response within the request's context; `save` stores the whole response, `delete`
        removes it."""
        self.owner = owner
        self.id = id
        self._store = store
        self._encoder = encoder
        self._in_flight = in_flight
        self._start = start
        self._save = save
        self._delete = delete
        self._logger: StreamLogger | None = None
        self._scope = trio.CancelScope()
        self._is_stopped = False
        self._is_failing = False
        """Whether the last attempt to store events failed."""
        self._events: list[bytes] = []
        """Events that are not stored yet."""
        self._stored_count = 0
        self._new_events = trio.Event()
        self._readers = trio.lowlevel.ParkingLot()

    def __repr__(self) -> str:
        return f"<BackgroundRun {self.id}, {self._stored_count} events stored>"

    def log_to(self, logger: StreamLogger) -> None:
        """Copy every event to a logger."""
        self._logger = logger

    def cancel(self) -> None:
        """Cancel the response; it is stored as cancelled."""
        self._scope.cancel()

    def stop(self) -> None:
        """Cancel the response, which is not this process's any more: nothing more is stored."""
        self._is_stopped = True
        self._scope.cancel()

    def end(self, error: QproxyError) -> None:
        """Let the response fail with this error."""
        self._in_flight.end(error)

    async def wait_events(self, seconds: float) -> None:
        """Wait until more events are stored or the run has ended, for at most some seconds."""
        with trio.move_on_after(seconds):
            await self._readers.park()

    async def queue(self) -> None:
        """Store the first events, with which the run begins."""
        events = self._encoder.queue()
        await self._store.start(self.owner, self.id, events, LEASE_SECONDS)
        self._stored_count = len(events)

    async def run(self, context: RequestContext, stack: AsyncExitStack) -> None:
        """Generate the response; `stack` has what the request has acquired."""
        async with stack:
            try:
                await self._generate(context)
            except Exception as error:
                self._fail(error, context)
            except BaseExceptionGroup as group:
                faults = group.split(trio.Cancelled)[1]
                if not isinstance(faults, ExceptionGroup):
                    raise
                self._fail(faults, context)
            finally:
                with trio.CancelScope(shield=True):  # each operation of a store has its own time limit
                    await self._conclude()
                self._readers.unpark_all()

    async def _generate(self, context: RequestContext) -> None:
        """Pull the response to its end, or to its cancellation, and release its upstream."""
        async with AsyncExitStack() as stack, trio.open_nursery() as nursery:
            request_context.resume(context, stack, nursery)
            nursery.start_soon(self._store_events)
            try:
                with self._scope, self._in_flight.deadline_scope():
                    await self._pull(context)
            except QproxyError as error:
                self._fail(error, context)
            if self._scope.cancelled_caught:
                self._add(self._encoder.cancel())
            nursery.cancel_scope.cancel()

    async def _pull(self, context: RequestContext) -> None:
        record, encoder = context.record, self._encoder
        answer = await self._open()
        del self._start  # it has the prompt
        self._add(encoder.begin())
        record.first_byte = record.seconds
        while events := await answer.receive():
            record_events(record, events)
            self._add([frame for event in events for frame in encoder.feed(event)])
        record.response_started = record.seconds
        record.outcome = "upstream_truncated" if record.error else "ok"
        self._add(encoder.close())

    async def _open(self) -> EventStream:
        """Open the response. It stays queued while every account is at its limits, for a moment at a time."""
        while True:
            try:
                return await self._start()
            except QproxyError as error:
                wait = error.retry_after
                if (
                    not error.should_retry
                    or error.status not in WAIT_STATUSES
                    or wait is None
                    or wait > MAX_WAIT
                ):
                    raise
                await trio.sleep(max(wait, MIN_WAIT))

    def _fail(self, error: Exception, context: RequestContext) -> None:
        if not isinstance(error, QproxyError):
            log.error("request %s failed in the background", context.record.id, exc_info=error)
            error = internal_error(context.record.id)
        outcome = "internal_error" if error.status >= 500 else "error"
        context.record.fail(error, "upstream_truncated" if isinstance(error, UpstreamError) else outcome)
        if self._encoder.last_response is None:
            self._add(self._encoder.fail(error))

    def _add(self, events: list[bytes]) -> None:
        self._events += events
        if self._logger is not None:
            self._logger.add(b"".join(events))
        if events:
            self._new_events.set()

    async def _store_events(self) -> None:
        """Store new events in batches, renew the lease, and obey the store's signals."""
        while True:
            with trio.move_on_after(RENEW_SECONDS):
                await self._new_events.wait()
                await trio.sleep(BATCH_SECONDS)
            signal = await self._flush()
            if signal is RunSignal.CANCEL:
                self.cancel()
            elif signal is RunSignal.STOP:
                self.stop()

    async def _flush(self) -> RunSignal:
        """Store the events so far; if that fails, they are stored with the next ones."""
        events, self._events, self._new_events = self._events, [], trio.Event()
        try:
            with trio.CancelScope(shield=True):  # an append may not be repeated by halves
                signal = await self._store.append(
                    self.owner, self.id, self._stored_count, events, LEASE_SECONDS
                )
        except ResponseStoreError as error:
            if not self._is_failing:
                log.warning("response %s: its events are not stored: %s", self.id, error)
            self._is_failing = True
            self._events = events + self._events
            return RunSignal.CONTINUE
        self._is_failing = False
        self._stored_count += len(events)
        self._readers.unpark_all()
        return signal

    async def _conclude(self) -> None:
        """Store the response in its last state, and end the run."""
        if self._encoder.last_response is None:
            self._add(self._encoder.fail(shutting_down_error()))
        if self._is_stopped or await self._flush() is RunSignal.STOP:
            return
        assert self._encoder.last_response is not None
        await self._save(self._encoder.last_response)
        try:
            if not await self._store.finish(self.owner, self.id):  # it was deleted at this moment
                await self._delete()
        except QproxyError as error:
            log.warning("response %s: its end is not stored: %s", self.id, error)


class BackgroundRuns:
    """The runs of this process."""

    def __init__(self) -> None:
        self._runs: dict[tuple[str, str], BackgroundRun] = {}
        self._nursery: trio.Nursery | None = None
        self._ended = trio.lowlevel.ParkingLot()

    def __repr__(self) -> str:
        return f"<BackgroundRuns {len(self._runs)} active>"

    def __len__(self) -> int:
        return len(self._runs)

    def __iter__(self) -> Iterator[BackgroundRun]:
        return iter(self._runs.values())

    def open(self, nursery: trio.Nursery) -> None:
        """Let runs start in a nursery, which outlives every request."""
        self._nursery = nursery

    def add(self, run: BackgroundRun, limit: int) -> None:
        """Add a run, which is started or removed next. Raises RequestError with status 429 if this process
        has as many as it may."""
        if len(self._runs) >= limit:
            message = (
                f"The server generates {len(self._runs)} responses in the background, its limit "
                "(max_background_responses). Retry when one of them has ended."
            )
            raise RequestError(
                message,
                status=429,
                type="rate_limit_error",
                code="too_many_background_responses",
                retry_after=RETRY_AFTER,
            )
        self._runs[run.owner, run.id] = run

    def remove(self, run: BackgroundRun) -> None:
        """Remove a run that has ended, or is not started."""
        del self._runs[run.owner, run.id]
        self._ended.unpark_all()

    def start(self, run: BackgroundRun, context: RequestContext) -> None:
        """Start a queued run, which takes over what its request has acquired."""
        assert self._nursery is not None, "the lifespan of the app is running"
        self._nursery.start_soon(self._run, run, context, context.stack.pop_all())

    def get(self, owner: str, id: str) -> BackgroundRun | None:
        """Return an active run of this process."""
        return self._runs.get((owner, id))

    async def wait_events(self, owner: str, id: str, seconds: float) -> None:
        """Wait for more events of a run; of another process's, which sends no notice, for some seconds."""
        run = self.get(owner, id)
        if run is None:
            await trio.sleep(seconds)
        else:
            await run.wait_events(seconds)

    async def close(self, timeout: float) -> None:
        """Wait for the runs to end, for at most some seconds; then let the remaining ones fail."""
        with trio.move_on_after(timeout):
            await self._wait_idle()
        for run in self._runs.values():
            run.end(shutting_down_error())
        await self._wait_idle()

    async def _wait_idle(self) -> None:
        while self._runs:
            await self._ended.park()

    async def _run(self, run: BackgroundRun, context: RequestContext, stack: AsyncExitStack) -> None:
        try:
            await run.run(context, stack)
        except Exception:
            log.exception("response %s failed in the background", run.id)
        finally:
            self.remove(run)
