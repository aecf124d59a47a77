"""One worker process, as its supervisor sees it: started, told a word, listened to, and its end.

The words to a worker are lines (`stop`, `reload`); its own are lines of JSON (`is_serving`, or `taken_up` and `messages`).
Nothing here waits.
"""

from __future__ import annotations

import json
import signal
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

STOP, RELOAD = b"stop", b"reload"


class WorkerProcess:
    """A process that was started.  OSError when it cannot be."""

    def __init__(self, command: Sequence[str], number: int, listener: socket.socket, now: float) -> None:
        self.number = number
        self.started_at = now
        self.is_silent = False
        """Whether it has closed its end of the line, as it does when it dies."""
        self._buffer = b""
        self.channel, theirs = socket.socketpair()
        self.channel.setblocking(False)
        with theirs:
            place = f"{number}:{theirs.fileno()}:{listener.fileno()}"
            try:
                self._process = subprocess.Popen(
                    [*command, "--worker", place],
                    stdin=subprocess.DEVNULL,
                    pass_fds=(theirs.fileno(), listener.fileno()),
                    process_group=0,  # or a terminal's Ctrl-C would reach it past the supervisor
                )
            except BaseException:
                self.channel.close()
                raise
        self.pid = self._process.pid

    def __repr__(self) -> str:
        return f"<Child {self.number}, process {self.pid}>"

    def send(self, word: bytes) -> None:
        """A word that it gets to when it can; one that has died hears nothing."""
        with suppress(OSError):
            self.channel.send(word + b"\n")

    def messages(self) -> Iterator[dict[str, Any]]:
        """What it has said since the last time."""
        with suppress(OSError):
            while data := self.channel.recv(65536):
                self._buffer += data
            self.is_silent = True
        *lines, self._buffer = self._buffer.split(b"\n")
        yield from map(json.loads, lines)

    def exit_status(self) -> int | None:
        """Its exit code, negative for the signal that killed it; None while it lives."""
        return self._process.poll()

    def kill(self) -> None:
        """End it now, and wait for that."""
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        self.channel.close()


def describe_exit(code: int) -> str:
    """How a process ended, for people."""
    if code >= 0:
        return f"ended with exit code {code}"
    with suppress(ValueError):
        return f"was killed by {signal.Signals(-code).name}"
    return f"was killed by signal {-code}"
