"""The file that names the process that serves a port, and reload requests to that process.

`PidFile` holds the process ID and the result of the last reload. The lock on it distinguishes a running
server from one that was killed. It uses neither Trio nor the server, for the supervisor and `qproxy reload`.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from qproxy.system.directories import make_private_directory

RELOAD_TIMEOUT = 10.0
"""Seconds to wait for the result of a reload."""
log = logging.getLogger("qproxy")


class PidFile:
    """The file of a serving process, locked within a `with` block."""

    def __init__(self, home: Path, port: int) -> None:
        self.path = home / f"serving-{port}.json"
        self._reload_count = 0
        self._file: TextIO | None = None

    def __enter__(self) -> PidFile:
        file = None
        try:
            make_private_directory(self.path.parent)
            file = self.path.open("a+")
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._file = file
            self._write()
        except OSError as error:  # not writable, or another address with the same port
            log.info("`qproxy reload` cannot find this server (%s); send it SIGHUP instead", error)
            if file is not None:
                file.close()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.truncate(0)
            self._file.close()

    def record_reload(self, applied: bool, message: str) -> None:
        """Store the result of a reload."""
        self._reload_count += 1
        self._write(applied=applied, message=message)

    def _write(self, **outcome: Any) -> None:
        if self._file is None:
            return
        self._file.truncate(0)
        self._file.write(json.dumps({"pid": os.getpid(), "reloads": self._reload_count, **outcome}))
        self._file.flush()


def is_serving(home: Path, port: int) -> bool:
    """Return whether a qproxy server of this data directory is running on this port."""
    return _state(home / f"serving-{port}.json") is not None


def serving_ports(home: Path) -> list[str]:
    """Return the ports of the running `qproxy serve` processes of this data directory."""
    files = sorted(home.glob("serving-*.json"))
    return [path.stem.partition("-")[2] for path in files if _state(path) is not None]


def request_reload(home: Path, port: int | None) -> tuple[bool, str]:
    """Make a server reload; return whether it applied the configuration, and its message.

    Without a port it is the only server of the data directory.
    """
    if port is None:
        ports = serving_ports(home)
        if len(ports) != 1:
            found = f"Servers are running on ports {', '.join(ports)}" if ports else "No server is running"
            return (
                False,
                f"{found} with this data directory ({home}){': choose one with --port' * bool(ports)}.",
            )
        port = int(ports[0])
    path = home / f"serving-{port}.json"
    before = _state(path)
    if before is None:
        return False, f"No qproxy server is running on port {port} (see --port)."
    os.kill(before["pid"], signal.SIGHUP)
    deadline = time.monotonic() + RELOAD_TIMEOUT
    while time.monotonic() < deadline:
        after = _state(path)
        if after is None:
            return False, "The server has stopped."
        if after["reloads"] > before["reloads"]:
            return after["applied"], after["message"]
        time.sleep(0.02)
    return (
        False,
        f"The server (process {before['pid']}) did not respond within {RELOAD_TIMEOUT:g} s; see its log.",
    )


def _state(path: Path) -> dict[str, Any] | None:
    """Return the content of a running server's file, None if none is running."""
    try:
        with path.open() as file:
            for _ in range(50):  # it may be writing
                with suppress(ValueError):
                    file.seek(0)
                    state: dict[str, Any] = json.load(file)
                    break
                time.sleep(0.01)
            else:
                return None
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                return state
    except OSError:
        pass
    return None
