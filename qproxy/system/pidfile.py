"""The file that says which process serves a port, and the way to have that process reload.

`PidFile` is a small file for the time of a block: the process, and how its last reload went.  The lock on it tells a
living server from one that was killed.  No Trio and nothing of the server: the supervisor of workers and `qproxy
reload` need no more than this.
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
log = logging.getLogger("qproxy")


class PidFile:
    """The file of one serving process, for the time of a block."""

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
        except OSError as error:  # no place to write, or another address with the same port
            log.info("`qproxy reload` will not find this server (%s); SIGHUP does", error)
            if file is not None:
                file.close()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.truncate(0)
            self._file.close()

    def record_reload(self, taken_up: bool, message: str) -> None:
        """Note how a reload went."""
        self._reload_count += 1
        self._write(taken_up=taken_up, said=message)

    def _write(self, **outcome: Any) -> None:
        if self._file is None:
            return
        self._file.truncate(0)
        self._file.write(json.dumps({"pid": os.getpid(), "reloads": self._reload_count, **outcome}))
        self._file.flush()


def is_serving(home: Path, port: int) -> bool:
    """Whether a server of ours serves this port."""
    return _state(home / f"serving-{port}.json") is not None


def request_reload(home: Path, port: int) -> tuple[bool, str]:
    """Have the server of a port reload; whether it has, and what it said."""
    path = home / f"serving-{port}.json"
    before = _state(path)
    if before is None:
        return False, f"No server of yours serves port {port} (see --port)."
    os.kill(before["pid"], signal.SIGHUP)
    limit = time.monotonic() + RELOAD_TIMEOUT
    while time.monotonic() < limit:
        now = _state(path)
        if now is None:
            return False, "The server has stopped."
        if now["reloads"] > before["reloads"]:
            return now["taken_up"], now["said"]
        time.sleep(0.02)
    return False, f"The server (process {before['pid']}) has not answered; its log may say why."


def _state(path: Path) -> dict[str, Any] | None:
    """What a living server has written into its file."""
    try:
        with path.open() as file:
            for _ in range(50):  # it may be writing just now
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
