"""One run of Hypercorn's Trio worker, made visible to the app that it serves.

Stock Hypercorn gives an app neither the server's addresses nor a shutdown notice. Here the stock function
`worker_serve` runs inside a wrapper that gives the app a `Worker` (`shutdown.current_shutdown`), whose
lifespan reads the addresses and sets the limits; every reason to stop passes through it: a signal, the
program's trigger, `max_requests`, an interrupt.

Under the `hypercorn` command, and only there, it also owns the process: its signals, the death of the master
(whose workers would otherwise keep running, ignore SIGTERM and hold the port), and the one-line error of a
failed startup.
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
        """The cancel scope of the whole run."""
        self.failure: str | None = None
        """The reason for which the app did not start, or None."""

    def hosts(self) -> Iterator[str]:
        """Yield the hosts of the bound addresses that have one."""
        sockets, config = self._sockets, self._config
        if sockets is None:
            for bind in (*config.bind, *config.insecure_bind, *config.quic_bind):
                yield from _bind_host(bind)
        else:
            for sock in (*sockets.secure_sockets, *sockets.insecure_sockets, *sockets.quic_sockets):
                yield from _socket_host(sock)

    def configure(self, **settings: Any) -> None:
        """Set Hypercorn's settings, and log those that override a configured value."""
        for name, value in settings.items():
            chosen = getattr(self._config, name)
            if chosen not in (value, getattr(Config, name)):
                log.warning("Hypercorn setting %s=%s ignored, using qproxy's %s", name, chosen, value)
            setattr(self._config, name, value)

    def fail(self, reason: str) -> None:
        """Record why the app does not start, and stop. Stock would listen first, and log so, before it
        stops."""
        self.failure = reason
        self.scope.cancel()

    def use_process_logging(self) -> None:
        """Send Hypercorn's log to the handlers of the process, unless Hypercorn's logging is configured."""
        config = self._config
        if config.errorlog == "-" and config.logconfig is None and config.logconfig_dict is None:
            config.errorlog = logging.getLogger("hypercorn.error")

    async def wait_stopped(self, trigger: Callable[..., Awaitable[None]] | None) -> None:
        """Wait for a reason to stop. Stock Hypercorn cancels this for its own reasons."""
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
        """Stop at a signal to the process, or at the death of its master."""
        master = multiprocessing.parent_process()
        if master is None:
            await wait_for_signal(self._stop, log.info)
            return
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the master sets its shutdown event instead
        await trio.lowlevel.wait_readable(master.sentinel)
        log.warning("master process exited, shutting down this worker")
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
    """Run Hypercorn's function of this name within a `Worker`."""
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
            sys.exit(launch.CANNOT_SERVE.format(worker.failure))  # one line, where stock prints a traceback
        raise LifespanFailureError("startup", worker.failure)


def install_worker() -> None:
    """Have Hypercorn run its Trio worker within a `Worker`, in this process."""
    setattr(hypercorn.trio, "worker_serve", worker_serve)  # noqa: B010 - typed modules do not let names be replaced
    setattr(hypercorn.trio.run, "worker_serve", worker_serve)  # noqa: B010


def _bind_host(bind: str) -> Iterator[str]:
    """Yield the host of an address in the syntax of Hypercorn's settings."""
    if bind.startswith("fd://"):
        with socket.socket(fileno=os.dup(int(bind.removeprefix("fd://")))) as sock:
            yield from _socket_host(sock)
    elif not bind.startswith("unix:"):
        host, _, port = bind.replace("[", "").replace("]", "").rpartition(":")
        yield host if host and port.isdecimal() else bind


def _socket_host(sock: socket.socket) -> Iterator[str]:
    if sock.family in (socket.AF_INET, socket.AF_INET6):
        yield sock.getsockname()[0]
