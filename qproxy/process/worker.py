"""One worker process, as its supervisor sees it: started, told a word, listened to, and its end.

The words to a worker are lines (`stop`, `reload`); its own are lines of JSON (`serves`, or `taken_up` and `said`).
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


class Child:
    """A process that was started.  OSError when it cannot be."""

    def __init__(self, command: Sequence[str], number: int, listener: socket.socket, now: float) -> None:
        self.number = number
        self.since = now
        self.silent = False
        """Whether it has closed its end of the line, as it does when it dies."""
        self._heard = b""
        self.line, theirs = socket.socketpair()
        self.line.setblocking(False)
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
                self.line.close()
                raise
        self.pid = self._process.pid

    def __repr__(self) -> str:
        return f"<Child {self.number}, process {self.pid}>"

    def tell(self, word: bytes) -> None:
        """A word that it gets to when it can; one that has died hears nothing."""
        with suppress(OSError):
            self.line.send(word + b"\n")

    def said(self) -> Iterator[dict[str, Any]]:
        """What it has said since the last time."""
        with suppress(OSError):
            while data := self.line.recv(65536):
                self._heard += data
            self.silent = True
        *lines, self._heard = self._heard.split(b"\n")
        yield from map(json.loads, lines)

    def ended(self) -> int | None:
        """Its exit code, negative for the signal that killed it; None while it lives."""
        return self._process.poll()

    def kill(self) -> None:
        """End it now, and wait for that."""
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        self.line.close()


def in_words(code: int) -> str:
    """How a process ended, for people."""
    if code >= 0:
        return f"ended with exit code {code}"
    with suppress(ValueError):
        return f"was killed by {signal.Signals(-code).name}"
    return f"was killed by signal {-code}"
