"""The supervisor: one loop that waits for signals, for words of the workers and for the time of the next start.

The first worker starts alone.  If it ends before it serves, so does everything, with its exit code: what is wrong is
then said once.  Later deaths are replaced, after a pause that grows while lives are short (`backoff`).

SIGTERM or SIGINT stops: the address is closed, and workers have the graceful time to end their requests.  A second one
ends everything at once.  SIGHUP has all workers reload.  Signals come through a file descriptor (`set_wakeup_fd`), so
that nothing happens within a handler.

Standard library only, no threads, no Trio: the supervisor stands when everything else falls.
"""

from __future__ import annotations

import logging
import math
import os
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
from qproxy.process.systemd import Notifier
from qproxy.process.worker import RELOAD, STOP, WorkerProcess, describe_exit
from qproxy.system.directories import peer_directory
from qproxy.system.pidfile import PidFile

STOPS = (signal.SIGTERM, signal.SIGINT)
SIGNALS = (*STOPS, signal.SIGHUP, signal.SIGCHLD)
BACKLOG = 2048
SHUTDOWN_MARGIN = 10.0
"""After the graceful time, for workers to end by themselves."""
log = logging.getLogger("qproxy.process")


class WorkerSlot:
    """One of the N: its worker, or when the next one begins."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.child: WorkerProcess | None = None
        self.due = math.inf
        self.backoff = RestartBackoff()


class Supervisor:
    """Of the workers behind one address."""

    def __init__(
        self,
        command: Sequence[str],
        listener: socket.socket,
        number: int,
        *,
        graceful: float,
        started: Callable[[str], None],
        reloaded: Callable[[bool, str], None],
        stopping: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._command = command
        self._listener = listener
        self._slots = [WorkerSlot(n + 1) for n in range(number)]
        self._graceful_timeout = graceful
        self._started, self._reloaded, self._stopping = started, reloaded, stopping
        self._clock = clock
        self._selector = selectors.DefaultSelector()
        self._is_serving = False
        """Whether the first worker has begun to serve."""
        self._stop_deadline: float | None = None
        """When workers that still live are killed; None until it is time to stop."""
        self._reload_requested: set[WorkerProcess] = set()
        """Who has not said yet how a reload went."""
        self._outcomes: list[tuple[bool, str]] = []
        self._restart_counts = False
        self._code: int | None = None

    def run(self) -> int:
        """Until it is over; returns the exit code."""
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
        """Wait until something happens, and do what follows."""
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
                self._receive(slot)  # its last words
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
                    slot.child = WorkerProcess(self._command, slot.number, self._listener, self._clock())
                except OSError as error:
                    self._failed(slot, f"cannot be started ({error})", 0.0, 1)
                else:
                    self._selector.register(slot.child.channel, selectors.EVENT_READ)

    def _receive(self, slot: WorkerSlot) -> None:
        if slot.child is None:
            return
        for text in slot.child.messages():
            if "serves" in text:
                self._on_started(text["serves"])
            else:
                self._on_reloaded(slot.child, (text["taken_up"], text["said"]))
        if slot.child.is_silent:
            self._forget(slot.child)  # or its end would be news again and again, until it is dead

    def _on_started(self, where: str) -> None:
        if self._is_serving or self._stop_deadline is not None:
            return
        self._is_serving = True
        for slot in self._slots[1:]:
            slot.due = self._clock()
        self._started(where)

    def _on_signal(self, number: int) -> None:
        if number == signal.SIGHUP and self._stop_deadline is None:
            self._reload()
        elif number in STOPS and self._stop_deadline is None:
            self._stop()
        elif number in STOPS:
            self._stopping("Stopping at once.")
            self._code = 128 + number

    def _reload(self) -> None:
        self._reload_requested = set(self._children())
        self._outcomes = []
        for child in self._reload_requested:
            child.send(RELOAD)
        if not self._reload_requested:
            self._reloaded(False, "no worker lives now; the next one reads the settings as they are then")

    def _on_reloaded(self, child: WorkerProcess, *outcomes: tuple[bool, str]) -> None:
        """With an outcome, or dead without one; who asked hears of the first failure, or what all say."""
        if child not in self._reload_requested:
            return
        self._reload_requested.remove(child)
        self._outcomes += outcomes
        if not self._reload_requested:
            gone = [(False, "all workers ended meanwhile")]
            self._reloaded(*min(self._outcomes or gone, key=lambda outcome: outcome[0]))

    def _stop(self) -> None:
        self._stopping("Stopping: running requests may end; once more to stop at once.")
        self._stop_deadline = self._clock() + self._graceful_timeout + SHUTDOWN_MARGIN
        self._listener.close()
        for child in self._children():
            child.send(STOP)
        if not self._children():
            self._code = 0

    def _on_exit(self, slot: WorkerSlot, child: WorkerProcess, code: int) -> None:
        slot.child = None
        self._forget(child)
        child.close()
        self._on_reloaded(child)
        if self._stop_deadline is None:
            text = f"(process {child.pid}) {describe_exit(code)}"
            self._failed(slot, text, self._clock() - child.started_at, code if code >= 0 else 128 - code)
            return
        self._restart_counts = self._restart_counts or code != 0
        if not self._children() and self._code is None:
            self._code = 1 if self._restart_counts else 0

    def _forget(self, child: WorkerProcess) -> None:
        """Wait for no more words of it."""
        if child.channel in self._selector.get_map():
            self._selector.unregister(child.channel)

    def _failed(self, slot: WorkerSlot, text: str, lived: float, code: int) -> None:
        """A worker is gone, or did not come: another one will, unless none has served yet."""
        if not self._is_serving:
            log.error("the first worker %s before it served", text)
            self._code = code or 1
            return
        wait = slot.backoff.delay_after(lived)
        slot.due = self._clock() + wait
        when = f"in {wait:g} s" if wait else "now"
        log.warning("worker %d %s; another one begins %s", slot.number, text, when)

    def _kill_the_rest(self) -> None:
        for child in self._children():
            log.error("worker %d (process %d) does not end: it is killed", child.number, child.pid)
            child.kill()
        self._stop_deadline = math.inf


@contextmanager
def _signals() -> Iterator[socket.socket]:
    """A socket from which the numbers of signals can be read."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        theirs.setblocking(False)
        handlers = {number: signal.signal(number, lambda *_: None) for number in SIGNALS}
        wakeup = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
        try:
            yield ours
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
    """A socket that listens there.  OSError, in words, when it cannot."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise OSError(f"cannot serve on {host}, port {port}: {error.strerror or error}") from None
    return listener


def run(config: Config, command: Sequence[str], say: Callable[[str], None]) -> int:
    """`qproxy serve` with several workers, each begun by `command`; returns the exit code."""
    configure_logging(config)
    number, home, notifier = process.worker_count(config.workers), configuration.data_dir(), Notifier()
    listener = bound_listener(config.host, config.port)
    port = listener.getsockname()[1]
    with listener, ExitStack() as stack:
        stack.callback(rmtree, peer_directory(home, os.getpid()), ignore_errors=True)
        running = PidFile(home, port)

        def begun(where: str) -> None:
            stack.enter_context(running)
            say(f"qproxy serves {where} with {number} workers")
            notifier.ready()

        def stopping(text: str) -> None:
            notifier.stopping()
            say(text)

        supervisor = Supervisor(
            command,
            listener,
            number,
            graceful=config.graceful_timeout,
            started=begun,
            reloaded=running.record_reload,
            stopping=stopping,
        )
        return supervisor.run()
