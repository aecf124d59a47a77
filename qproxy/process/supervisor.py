"""The supervisor: a loop that waits for signals, messages of the workers and the time of the next restart.

The first worker starts alone. If it exits before it serves, the supervisor exits with its code, so a fault is
reported once. Workers that exit later are restarted, after a delay that grows while runs are short
(`backoff`), with the settings in effect: those of the start, or of the last reload that all workers applied.

SIGTERM or SIGINT closes the address and gives workers graceful_timeout to finish their requests; a second one
quits immediately. SIGHUP makes all workers reload. Signals arrive through a file descriptor
(`set_wakeup_fd`), so nothing runs in a handler.

Standard library only, no threads, no Trio: the supervisor must survive faults of everything else.
"""

from __future__ import annotations

import base64
import logging
import math
import os
import pickle
import selectors
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from shutil import rmtree

from qproxy import config as configuration
from qproxy import process
from qproxy.config import Config
from qproxy.process.backoff import RestartBackoff
from qproxy.process.log_setup import configure_logging
from qproxy.process.shared_state import require_compatible_state
from qproxy.process.systemd import Notifier
from qproxy.process.worker import RELOAD, STOP, WorkerProcess, describe_exit
from qproxy.system.directories import peer_directory
from qproxy.system.listener import bound_socket
from qproxy.system.pidfile import PidFile

STOPS = (signal.SIGTERM, signal.SIGINT)
SIGNALS = (*STOPS, signal.SIGHUP, signal.SIGCHLD)
BACKLOG = 2048
SHUTDOWN_MARGIN = 10.0
"""Seconds after graceful_timeout for workers to exit by themselves."""
log = logging.getLogger("qproxy.process")


class WorkerSlot:
    """One of the N workers: its process, or the time of its next start."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.child: WorkerProcess | None = None
        self.due = math.inf
        self.backoff = RestartBackoff()


class Supervisor:
    """Starts, restarts and stops the workers behind one address."""

    def __init__(
        self,
        command: Sequence[str],
        listener: socket.socket,
        number: int,
        *,
        settings: bytes,
        graceful: float,
        started: Callable[[str], None],
        reloaded: Callable[[bool, str], None],
        stopping: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._command = command
        self._listener = listener
        self._slots = [WorkerSlot(n + 1) for n in range(number)]
        self._settings = settings
        """Those in effect, as workers read them."""
        self._reloaded_settings = settings
        """Those that a worker reports during a reload."""
        self._graceful_timeout = graceful
        self._started, self._reloaded, self._stopping = started, reloaded, stopping
        self._clock = clock
        self._selector = selectors.DefaultSelector()
        self._is_serving = False
        """Whether the first worker is serving."""
        self._stop_deadline: float | None = None
        """Time at which remaining workers are killed; None unless stopping."""
        self._reload_requested: set[WorkerProcess] = set()
        """Workers that have not reported the result of a reload."""
        self._outcomes: list[tuple[bool, str]] = []
        self._has_failures = False
        self._code: int | None = None

    def run(self) -> int:
        """Run until all workers have exited, and return the exit code."""
        self._slots[0].due = self._clock()
        with self._selector, _signals() as wake:
            self._selector.register(wake, selectors.EVENT_READ)
            try:
                self._start_due()
                while self._code is None:
                    self._step(wake)
                return self._code
            finally:
                for child in self._children():
                    child.kill()
                    child.close()

    def _children(self) -> list[WorkerProcess]:
        return [slot.child for slot in self._slots if slot.child is not None]

    def _step(self, wake: socket.socket) -> None:
        """Wait for the next event and handle it."""
        now = self._clock()
        times = [slot.due for slot in self._slots] if self._stop_deadline is None else [self._stop_deadline]
        soonest = min(times)
        self._selector.select(None if soonest == math.inf else max(0.0, soonest - now))
        for slot in self._slots:
            self._receive(slot)
        for number in _pending_signals(wake):
            self._on_signal(number)
        for slot in self._slots:
            if slot.child is not None and (code := slot.child.exit_status()) is not None:
                self._receive(slot)  # its final messages
                self._on_exit(slot, slot.child, code)
        if self._stop_deadline is None:
            self._start_due()
        elif self._clock() >= self._stop_deadline:
            self._kill_the_rest()

    def _start_due(self) -> None:
        for slot in self._slots:
            if self._clock() >= slot.due and self._code is None:
                slot.due = math.inf
                try:
                    slot.child = WorkerProcess(
                        self._command, slot.number, self._listener, self._settings, self._clock()
                    )
                except OSError as error:
                    self._failed(slot, f"could not be started ({error})", 0.0, 1)
                else:
                    self._selector.register(slot.child.channel, selectors.EVENT_READ)

    def _receive(self, slot: WorkerSlot) -> None:
        if slot.child is None:
            return
        for message in slot.child.messages():
            if "serving" in message:
                self._on_started(message["serving"])
            else:
                if message["applied"]:
                    self._reloaded_settings = base64.b64decode(message["settings"])
                self._on_reloaded(slot.child, (message["applied"], message["message"]))
        if slot.child.is_closed:
            self._unregister(slot.child)  # a socket at its end stays readable until the process exits

    def _on_started(self, summary: str) -> None:
        if self._is_serving or self._stop_deadline is not None:
            return
        self._is_serving = True
        for slot in self._slots[1:]:
            slot.due = self._clock()
        self._started(summary)

    def _on_signal(self, number: int) -> None:
        if number == signal.SIGHUP and self._stop_deadline is None:
            self._reload()
        elif number in STOPS and self._stop_deadline is None:
            self._stop()
        elif number in STOPS:
            self._stopping("Quitting.")
            self._code = 128 + number

    def _reload(self) -> None:
        self._reload_requested = set(self._children())
        self._outcomes = []
        for child in self._reload_requested:
            child.send(RELOAD)
        if not self._reload_requested:
            self._reloaded(False, "no worker is running; reload again when one is")

    def _on_reloaded(self, child: WorkerProcess, *outcomes: tuple[bool, str]) -> None:
        """Record a worker's outcome, or its exit; when all have reported, report the first failure."""
        if child not in self._reload_requested:
            return
        self._reload_requested.remove(child)
        self._outcomes += outcomes
        if not self._reload_requested:
            none = [(False, "all workers exited during the reload")]
            applied, text = min(self._outcomes or none, key=lambda outcome: outcome[0])
            if applied:
                self._settings = self._reloaded_settings
            self._reloaded(applied, text)

    def _stop(self) -> None:
        self._stopping("Shutting down: waiting for in-flight requests. Press Ctrl+C again to quit now.")
        self._stop_deadline = self._clock() + self._graceful_timeout + SHUTDOWN_MARGIN
        self._listener.close()
        for child in self._children():
            child.send(STOP)
        if not self._children():
            self._code = 0

    def _on_exit(self, slot: WorkerSlot, child: WorkerProcess, code: int) -> None:
        slot.child = None
        self._unregister(child)
        child.close()
        self._on_reloaded(child)
        if self._stop_deadline is None:
            text = f"(process {child.pid}) {describe_exit(code)}"
            self._failed(slot, text, self._clock() - child.started_at, code if code >= 0 else 128 - code)
            return
        self._has_failures = self._has_failures or code != 0
        if not self._children() and self._code is None:
            self._code = 1 if self._has_failures else 0

    def _unregister(self, child: WorkerProcess) -> None:
        """Stop waiting for messages of a worker."""
        if child.channel in self._selector.get_map():
            self._selector.unregister(child.channel)

    def _failed(self, slot: WorkerSlot, text: str, uptime: float, code: int) -> None:
        """Schedule the restart of a worker that exited or did not start; give up if none has served yet."""
        if not self._is_serving:
            log.error("worker 1 %s during startup", text)
            self._code = code or 1
            return
        wait = slot.backoff.delay_after(uptime)
        slot.due = self._clock() + wait
        log.warning("worker %d %s, restarting in %g s", slot.number, text, wait)

    def _kill_the_rest(self) -> None:
        for child in self._children():
            log.error("worker %d (process %d) did not exit, sending SIGKILL", child.number, child.pid)
            child.kill()
        self._stop_deadline = math.inf


@contextmanager
def _signals() -> Iterator[socket.socket]:
    """Yield a socket that receives the numbers of signals."""
    reader, writer = socket.socketpair()
    with reader, writer:
        reader.setblocking(False)
        writer.setblocking(False)
        handlers = {number: signal.signal(number, lambda *_: None) for number in SIGNALS}
        wakeup = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        try:
            yield reader
        finally:
            signal.set_wakeup_fd(wakeup)
            for number, handler in handlers.items():
                signal.signal(number, handler)


def _pending_signals(wake: socket.socket) -> bytes:
    try:
        return wake.recv(4096)
    except BlockingIOError:
        return b""


def bound_listener(host: str, port: int) -> socket.socket:
    """Return a socket that listens on an address. Raises OSError, which names the address."""
    listener = bound_socket(host, port)
    listener.listen(BACKLOG)
    return listener


def run(config: Config, command: Sequence[str], notify: Callable[[str], None]) -> int:
    """Serve with several workers, each started by `command`, and return the exit code."""
    configure_logging(config)
    require_compatible_state(config)
    number, home, notifier = process.worker_count(config.workers), configuration.data_dir(), Notifier()
    listener = bound_listener(config.host, config.port)
    port = listener.getsockname()[1]
    with listener, ExitStack() as stack:
        stack.callback(rmtree, peer_directory(home, os.getpid()), ignore_errors=True)
        running = PidFile(home, port)

        def started(summary: str) -> None:
            stack.enter_context(running)
            notify(f"{summary}\n  workers    {number}")
            notifier.ready()

        def stopping(text: str) -> None:
            notifier.stopping()
            notify(text)

        supervisor = Supervisor(
            command,
            listener,
            number,
            settings=pickle.dumps(config),
            graceful=config.graceful_timeout,
            started=started,
            reloaded=running.record_reload,
            stopping=stopping,
        )
        return supervisor.run()
