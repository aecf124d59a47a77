"""What Hypercorn 0.18's Trio worker needs to be safe, and how qproxy serves with it.

`install` replaces four classes by subclasses, here and nowhere else, so that plain
`hypercorn qproxy:app --worker-class trio` is mended too.  Each cure says what it cures; `tests/test_hypercorn.py`
shows that stock Hypercorn fails, so that a cure can go when upstream has it.

  Server     an error in one connection ends that connection, not all workers (#228, #329)
  Server     a write that makes no progress ends its connection, and the reader's end ends a blocked write:
             a client that stopped reading pins nothing and delays no shutdown
  H1         bytes after a request do not blind the reader to the client's end (h11 PAUSED), within a bound
  H1         the keep-alive timer is armed although Quart-Trio cancels the task that arms it
  H2         DATA for a stream that has its answer is acknowledged and dropped (#329, #312, #365)
  H2         an answer that breaks off is reset, instead of leaving the client waiting for ever
  H2         non-ASCII pseudo headers and CONNECT end their stream, PRIORITY changes nothing
  H2 buffer  a full flow-control window stops the producer (stock: memory without bound at 100 % CPU)
  signals    workers leave SIGTERM to their master; a single process stops in an orderly way

Not curable here: the master's exit code 0 after a worker's failure (run it with Restart=always, or use
`qproxy serve`), a client's GOAWAY ending its running streams, half-close counting as leaving.
"""

from __future__ import annotations

import logging
import multiprocessing
import signal
import sys
from collections.abc import Awaitable, Callable
from importlib.metadata import version
from typing import Any

import h2.errors
import h2.events
import h2.exceptions
import h11
import hypercorn.protocol
import hypercorn.protocol.h2
import hypercorn.protocol.h11
import hypercorn.trio
import hypercorn.trio.run
import hypercorn.trio.tcp_server
import trio
from hypercorn.config import Config
from hypercorn.events import Closed, RawData
from hypercorn.protocol.events import StreamClosed

MENDED = "0.18"
MAX_PIPELINED = 64 * 1024
"""Bytes that a client may send ahead of the answer it waits for."""
log = logging.getLogger("qproxy.hypercorn")


class Server(hypercorn.trio.tcp_server.TCPServer):
    """One connection: its failures are its own, and its writes have a limit."""

    write_timeout = 30.0
    _write: trio.CancelScope | None = None
    _gone = False

    async def run(self) -> None:
        """Serve the connection; whatever goes wrong is logged in a line and ends here."""
        try:
            await super().run()
        except Exception as error:
            _log_failure(error)
        except BaseExceptionGroup as group:
            cancelled, failures = group.split(trio.Cancelled)
            if failures is not None:
                if failures.split((KeyboardInterrupt, SystemExit))[0] is not None:
                    raise
                _log_failure(failures)
            if cancelled is not None:
                raise cancelled from None

    async def protocol_send(self, event: Any) -> None:
        """Write with a limit on progress; a client that does not read is gone."""
        if not isinstance(event, RawData):
            await super().protocol_send(event)
            return
        async with self.send_lock:
            if self._gone:
                return
            limit = trio.current_time() + self.write_timeout
            try:
                with trio.CancelScope(shield=True, deadline=limit) as scope:
                    self._write = scope
                    await self.stream.send_all(event.data)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                await self.protocol.handle(Closed())
            else:
                if scope.cancelled_caught:
                    self._gone = True
                    await trio.aclose_forcefully(self.stream)
                    await self.protocol.handle(Closed())
            finally:
                self._write = None

    async def _read_data(self) -> None:
        try:
            await super()._read_data()
        finally:
            self._gone = True
            if self._write is not None:
                self._write.cancel()


def _log_failure(error: BaseException) -> None:
    log.error("a connection failed: %s", type(error).__name__, exc_info=error)


class _NeverPaused(h11.Connection):
    """h11 says PAUSED when bytes of a next request wait; to the reader that must not look like the end."""

    def next_event(self) -> Any:
        event = super().next_event()
        return h11.NEED_DATA if event is h11.PAUSED else event


class H1(hypercorn.protocol.h11.H11Protocol):
    """HTTP/1.1 that keeps reading while it answers."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.connection = _NeverPaused(
            h11.SERVER, max_incomplete_event_size=self.config.h11_max_incomplete_size
        )
        self._one_at_a_time = trio.Lock()

    def _waiting(self) -> int:
        connection = self.connection
        return len(connection.trailing_data[0]) if isinstance(connection, h11.Connection) else 0

    async def handle(self, event: Any) -> None:
        await super().handle(event)
        connection = self.connection
        if isinstance(event, RawData) and self.stream is not None and isinstance(connection, h11.Connection):
            ahead = connection.their_state is not h11.SEND_BODY
            if ahead and self._waiting() > MAX_PIPELINED:
                await self.send(Closed())

    async def _handle_events(self) -> None:
        async with self._one_at_a_time:
            await super()._handle_events()

    async def _maybe_recycle(self) -> None:
        # This runs in the app's task, which Quart-Trio cancels at the http.disconnect that is queued here.
        with trio.CancelScope(shield=True):
            await super()._maybe_recycle()
        connection = self.connection
        if isinstance(connection, h11.Connection) and connection.our_state is h11.IDLE and self._waiting():
            self.task_group.spawn(self._handle_events)


class StreamBuffer(hypercorn.protocol.h2.StreamBuffer):
    """Stock `pop` judges by what it took, so a closed window (nothing taken) lets the producer run on."""

    async def push(self, data: bytes) -> None:
        if self._complete:
            raise hypercorn.protocol.h2.BufferCompleteError()
        self.buffer.extend(data)
        await self._is_empty.clear()
        if len(self.buffer) >= hypercorn.protocol.h2.BUFFER_HIGH_WATER:
            await self._paused.clear()
            await self._paused.wait()

    async def pop(self, max_length: int) -> bytes:
        length = min(len(self.buffer), max_length)
        data = bytes(self.buffer[:length])
        del self.buffer[:length]
        if len(self.buffer) < hypercorn.protocol.h2.BUFFER_LOW_WATER:
            await self._paused.set()
        if not self.buffer:
            await self._is_empty.set()
        return data


class H2(hypercorn.protocol.h2.H2Protocol):
    """HTTP/2 whose odd frames end a stream, never the server."""

    async def _handle_events(self, events: list[Any]) -> None:
        for event in events:
            if isinstance(event, h2.events.DataReceived) and event.stream_id not in self.streams:
                try:
                    self.connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                except h2.exceptions.ProtocolError:
                    continue  # the stream is closed on both sides: there is nobody to tell
                await self._flush()
            elif not isinstance(event, h2.events.PriorityUpdated):
                await super()._handle_events([event])

    async def stream_send(self, event: Any) -> None:
        if isinstance(event, StreamClosed):
            buffer = self.stream_buffers.get(event.stream_id)
            if buffer is not None and not buffer._complete:
                await self._reset(event.stream_id, h2.errors.ErrorCodes.INTERNAL_ERROR)
                await buffer.close()
        await super().stream_send(event)

    async def _reset(self, stream_id: int, code: h2.errors.ErrorCodes) -> None:
        try:
            self.connection.reset_stream(stream_id, code)
            await self._flush()
        except h2.exceptions.ProtocolError:
            log.debug("stream %d is closed already", stream_id)

    async def _create_stream(self, request: Any) -> None:
        pseudo = dict(field for field in request.headers if field[0][:1] == b":")
        path, method = pseudo.get(b":path", b"\xff"), pseudo.get(b":method", b"\xff")
        if path.isascii() and method.isascii():
            await super()._create_stream(request)
        else:
            await self._reset(request.stream_id, h2.errors.ErrorCodes.PROTOCOL_ERROR)


def install(*, write_timeout: float = 30.0) -> None:
    """Mend Hypercorn in this process.  Idempotent.  Another minor version is left as it is, with a warning."""
    Server.write_timeout = write_timeout
    if not version("hypercorn").startswith(MENDED + "."):
        log.warning("Hypercorn %s is not the %s that qproxy knows how to mend", version("hypercorn"), MENDED)
        return
    setattr(hypercorn.trio.run, "TCPServer", Server)  # noqa: B010 - typed modules do not let classes be replaced
    setattr(hypercorn.protocol, "H11Protocol", H1)  # noqa: B010
    setattr(hypercorn.protocol, "H2Protocol", H2)  # noqa: B010
    setattr(hypercorn.protocol.h2, "StreamBuffer", StreamBuffer)  # noqa: B010


def _is_hypercorns_command() -> bool:
    """Whether this process was begun by `hypercorn`, `python -m hypercorn`, or as a worker of either."""
    process = multiprocessing.current_process()
    target = getattr(process, "_target", None)  # the only sign of a worker that was begun with -m
    if getattr(target, "func", target) is hypercorn.trio.run.trio_worker:
        return True
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    return "hypercorn.__main__" in (getattr(spec, "name", None), *sys.modules)


def install_signals() -> None:
    """For the `hypercorn` command only (an embedding program keeps its own handlers).  Call it within Trio."""
    if not _is_hypercorns_command():
        return
    if multiprocessing.parent_process() is not None:  # the master's shutdown event drives the workers
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    else:
        # -w 0 has no handler: make it the KeyboardInterrupt that Hypercorn ends on.  Raised from Trio's own task, it
        # goes to the main task, and never into whichever request happens to run.
        token = trio.lowlevel.current_trio_token()
        signal.signal(signal.SIGTERM, lambda *_: token.run_sync_soon(signal.raise_signal, signal.SIGINT))


async def serve(
    app: Any,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    certfile: str | None = None,
    keyfile: str | None = None,
    graceful_timeout: float = 30.0,
    write_timeout: float = 30.0,
    shutdown_trigger: Callable[[], Awaitable[None]] | None = None,
    task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve an ASGI app over HTTP/1.1 and HTTP/2 (h2c with prior knowledge; ALPN with a certificate).

    Reports the bound URLs.  When `shutdown_trigger` returns, no new connection is taken and running requests have
    `graceful_timeout` seconds to end.
    """
    install(write_timeout=write_timeout)
    config = Config()
    config.bind = [f"[{host}]:{port}" if ":" in host else f"{host}:{port}"]
    config.certfile, config.keyfile = certfile, keyfile
    config.graceful_timeout = graceful_timeout
    config.backlog = 2048
    config.include_server_header = False
    config.errorlog = logging.getLogger("hypercorn.error")
    config.h2_max_concurrent_streams = 250

    async def serve_in(task_status: Any) -> None:
        await hypercorn.trio.serve(app, config, shutdown_trigger=shutdown_trigger, task_status=task_status)

    async with trio.open_nursery() as nursery:
        task_status.started(await nursery.start(serve_in))


async def until_signal(stop: trio.Event, say: Callable[[str], None]) -> None:
    """Set `stop` at the first SIGINT or SIGTERM; a second one ends the program at once."""
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async for number in signals:
            if stop.is_set():
                say("Stopping at once.")
                sys.exit(128 + number)
            say("Stopping: running requests may end; once more to stop at once.")
            stop.set()
