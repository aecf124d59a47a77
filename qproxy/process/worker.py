"""The supervisor's end of one worker process: its start, commands, messages and exit.

Commands to a worker are lines (`stop`, `reload`); its messages are lines of JSON (`serving`, or `applied`,
`message` and `settings`). A worker starts with the settings in effect, which it inherits as an open file: the
configuration file may be half edited. No method waits, except `kill`.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import IO, Any

STOP, RELOAD = b"stop", b"reload"


class WorkerProcess:
    """A worker process. Raises OSError if it cannot be started."""

    def __init__(
        self, command: Sequence[str], number: int, listener: socket.socket, settings: bytes, now: float
    ) -> None:
        """`settings` are for the worker alone (`channel.WorkerSpec`)."""
        self.number = number
        self.started_at = now
        self.is_closed = False
        """Whether its end of the channel is closed, as it is when it exits."""
        self._buffer = b""
        self.channel, worker_end = socket.socketpair()
        self.channel.setblocking(False)
        with worker_end, _memory_file(settings) as file:
            descriptors = (worker_end.fileno(), listener.fileno(), file.fileno())
            spec = ":".join(map(str, (number, *descriptors)))
            try:
                self._process = subprocess.Popen(
                    [*command, "--worker", spec],
                    stdin=subprocess.DEVNULL,
                    pass_fds=descriptors,
                    process_group=0,  # keeps a terminal's Ctrl+C from reaching it directly
                )
            except BaseException:
                self.channel.close()
                raise
        self.pid = self._process.pid

    def __repr__(self) -> str:
        return f"<Child {self.number}, process {self.pid}>"

    def send(self, command: bytes) -> None:
        """Send a command; ignored by a process that has exited."""
        with suppress(OSError):
            self.channel.send(command + b"\n")

    def messages(self) -> Iterator[dict[str, Any]]:
        """Yield the messages received since the last call."""
        with suppress(OSError):
            while data := self.channel.recv(65536):
                self._buffer += data
            self.is_closed = True
        *lines, self._buffer = self._buffer.split(b"\n")
        yield from map(json.loads, lines)

    def exit_status(self) -> int | None:
        """Return its exit code, negative for the signal that killed it, or None while it runs."""
        return self._process.poll()

    def kill(self) -> None:
        """Kill it and wait for its exit."""
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        self.channel.close()


def _memory_file(data: bytes) -> IO[bytes]:
    """Return an open file with secret data, which has no name and needs no disk where that is possible."""
    if sys.platform == "linux":
        file: IO[bytes] = open(os.memfd_create("settings"), "w+b")  # noqa: SIM115 - the caller closes it
    else:
        file = tempfile.TemporaryFile()  # noqa: SIM115
    file.write(data)
    file.seek(0)
    return file


def describe_exit(code: int) -> str:
    """Return a description of an exit code of `subprocess`."""
    if code >= 0:
        return f"exited with code {code}"
    with suppress(ValueError):
        return f"was killed by {signal.Signals(-code).name}"
    return f"was killed by signal {-code}"
