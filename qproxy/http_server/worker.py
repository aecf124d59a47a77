"""One run of Hypercorn's Trio worker: what the app that it serves may know of it and ask of it.

Stock tells an app nothing of its server: not the addresses that it serves, not that it stops.  Here the stock function
`worker_serve` runs inside ours.  It announces a `Worker` to the app (`shutdown.current_shutdown`), whose lifespan looks at the
addresses and sets the limits; and every reason to stop passes through it: a signal, the program's own trigger,
`max_requests`, an interrupt.

Under the `hypercorn` command, and only there, it also owns the process: its signals, the death of the master (whose
workers would otherwise live on, ignore SIGTERM and hold the port), and the one line that says why the app did not start.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import hypercorn.trio
import hypercorn.trio.run
import trio
from hypercorn.config import Config, Sockets
from hypercorn.utils import LifespanFailureError

from qproxy.http_server.shutdown import Shutdown, current_shutdown
from qproxy.http_server.signals import wait_for_signal
from qproxy.system import launch

_serve = hypercorn.trio.run.worker_serve
log = logging.getLogger("qproxy.http_server")


class Worker(Shutdown):
    """One run of Hypercorn's Trio worker."""

    def __init__(self, config: Config, sockets: Sockets | None) -> None:
        super().__init__()
        self._config = config
        self._sockets = sockets
        self._stop = trio.Event()
        self.scope = trio.CancelScope()
        """Around all of it."""
        self.failure: str | None = None
        """Why the app did not start, once it has said so."""

    def hosts(self) -> Iterator[str]:
        """The addresses that are served, those that have a host."""
        sockets, config = self._sockets, self._config
        if sockets is None:
            for bind in (*config.bind, *config.insecure_bind, *config.quic_bind):
                yield from _bind_host(bind)
        else:
            for sock in (*sockets.secure_sockets, *sockets.insecure_sockets, *sockets.quic_sockets):
                yield from _socket_host(sock)

    def configure(self, **settings: Any) -> None:
        """Set Hypercorn's settings; one that somebody has set to something else is named in the log."""
        for name, value in settings.items():
            chosen = getattr(self._config, name)
            if chosen not in (value, getattr(Config, name)):
                log.warning("Hypercorn's %s (%s) is not used: qproxy's settings say %s", name, chosen, value)
            setattr(self._config, name, value)

    def fail(self, reason: str) -> None:
        """Note why the app does not start, and end.  Stock would listen first, and say so, before it ends."""
        self.failure = reason
        self.scope.cancel()

    def use_process_logging(self) -> None:
        """Leave Hypercorn's lines to the handlers of the process, unless Hypercorn was told where they go."""
        config = self._config
        if config.errorlog == "-" and config.logconfig is None and config.logconfig_dict is None:
            config.errorlog = logging.getLogger("hypercorn.error")

    async def wait_stopped(self, trigger: Callable[..., Awaitable[None]] | None) -> None:
        """Wait for a reason to stop.  Stock cancels this when it has one of its own."""
        try:
            async with trio.open_nursery() as nursery:
                if trigger is not None:
                    nursery.start_soon(self._stop_after, trigger)
                if launch.is_hypercorn_command():
                    nursery.start_soon(self._watch_process)
                await self._stop.wait()
                nursery.cancel_scope.cancel()
        finally:
            self.started.set()

    async def _stop_after(self, trigger: Callable[..., Awaitable[None]]) -> None:
        await trigger()
        self._stop.set()

    async def _watch_process(self) -> None:
        """Stop when the process is asked to end, or is left alone."""
        master = multiprocessing.parent_process()
        if master is None:
            await wait_for_signal(self._stop, log.info)
            return
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the master's event says when it is time
        await trio.lowlevel.wait_readable(master.sentinel)
        log.warning("the master of this worker is gone: it stops")
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        self._stop.set()


async def worker_serve(
    app: Any,
    config: Config,
    *,
    sockets: Sockets | None = None,
    shutdown_trigger: Callable[..., Awaitable[None]] | None = None,
    task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Hypercorn's function of this name, within a `Worker`."""
    worker = Worker(config, sockets)
    token = current_shutdown.set(worker)

    async def until_stopped() -> None:
        await worker.wait_stopped(shutdown_trigger)

    try:
        with worker.scope:
            await _serve(
                app, config, sockets=sockets, shutdown_trigger=until_stopped, task_status=task_status
            )
    finally:
        current_shutdown.reset(token)
    if worker.failure is not None:
        if launch.is_hypercorn_command():
            sys.exit(launch.CANNOT_SERVE.format(worker.failure))  # a line, where stock has a traceback
        raise LifespanFailureError("startup", worker.failure)


def install_worker() -> None:
    """Have Hypercorn run its Trio worker within a `Worker`, in this process."""
    setattr(hypercorn.trio, "worker_serve", worker_serve)  # noqa: B010 - typed modules do not let names be replaced
    setattr(hypercorn.trio.run, "worker_serve", worker_serve)  # noqa: B010


def _bind_host(bind: str) -> Iterator[str]:
    """The host of an address as Hypercorn's settings have it."""
    if bind.startswith("fd://"):
        with socket.socket(fileno=os.dup(int(bind.removeprefix("fd://")))) as sock:
            yield from _socket_host(sock)
    elif not bind.startswith("unix:"):
        host, _, port = bind.replace("[", "").replace("]", "").rpartition(":")
        yield host if host and port.isdecimal() else bind


def _socket_host(sock: socket.socket) -> Iterator[str]:
    if sock.family in (socket.AF_INET, socket.AF_INET6):
        yield sock.getsockname()[0]
