"""Another configuration for a server that runs: read, checked, and taken up whole or not at all.

A reload makes the parts anew from the new settings, keeps those whose settings are the same (accounts with what is
known of them, the connections to their servers), and gives them to the server in one step between two requests.
Requests under way keep what they have: no stream is dropped.  What cannot be used is said in the log, and to whoever
asked, and the old configuration stays.

`Running` is a small file that says which process serves a port and how its last reload went; the lock on it tells
a living server from one that was killed.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

import trio

from qproxy.config import Config
from qproxy.folders import make_private
from qproxy.presets import ConfigError
from qproxy.server import Server

AT_START = frozenset({
    "host", "port", "certfile", "keyfile", "max_clients", "max_header_bytes", "client_idle_timeout",
    "accounts_file", "client_write_timeout", "graceful_timeout", "body_timeout", "max_body_bytes",
    "metrics_access", "tracing", "ledger", "ledger_days",
})  # fmt: skip
"""Settings that a running server cannot take up."""
ANSWER_TIMEOUT = 10.0
log = logging.getLogger("qproxy")


class Reloader:
    """Takes a server from one configuration to the next."""

    def __init__(
        self,
        server: Server,
        config: Config,
        load: Callable[[], Config],
        assemble: Callable[[Config, Config, Server], Server],
    ) -> None:
        self._server = server
        self._config = config
        self._load = load
        self._assemble = assemble

    async def reload(self) -> tuple[bool, str]:
        """Whether the configuration was taken up, and a line that says so."""
        try:
            config = self._load()
            config.check()
            parts = self._assemble(config, self._config, self._server)
        except ConfigError as error:
            log.error("not reloaded, the configuration from before stays: %s", error)
            return False, str(error)
        changed = {f.name for f in fields(Config) if getattr(config, f.name) != getattr(self._config, f.name)}
        self._config = config
        await self._server.take_up(parts)
        said = f"reloaded; changed: {', '.join(sorted(changed - AT_START)) or 'nothing'}"
        if changed & AT_START:
            said += f"; only a restart changes {', '.join(sorted(changed & AT_START))}"
        log.info("%s", said)
        return True, said

    async def while_running(self, home: Path, port: int) -> None:
        """Reload at every SIGHUP, and say so in the process's file."""
        with trio.open_signal_receiver(signal.SIGHUP) as signals, Running(home, port) as running:
            async for _ in signals:
                running.reloaded(*await self.reload())


class Running:
    """The file of one serving process, for the time of a block."""

    def __init__(self, home: Path, port: int) -> None:
        self.path = home / f"serving-{port}.json"
        self._reloads = 0
        self._file: TextIO | None = None

    def __enter__(self) -> Running:
        file = None
        try:
            make_private(self.path.parent)
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

    def reloaded(self, taken_up: bool, said: str) -> None:
        """Note how a reload went."""
        self._reloads += 1
        self._write(taken_up=taken_up, said=said)

    def _write(self, **outcome: Any) -> None:
        if self._file is None:
            return
        self._file.truncate(0)
        self._file.write(json.dumps({"pid": os.getpid(), "reloads": self._reloads, **outcome}))
        self._file.flush()


def serves(home: Path, port: int) -> bool:
    """Whether a server of ours serves this port."""
    return _state(home / f"serving-{port}.json") is not None


def ask_to_reload(home: Path, port: int) -> tuple[bool, str]:
    """Have the server of a port reload; whether it has, and what it said."""
    path = home / f"serving-{port}.json"
    before = _state(path)
    if before is None:
        return False, f"No server of yours serves port {port} (see --port)."
    os.kill(before["pid"], signal.SIGHUP)
    limit = time.monotonic() + ANSWER_TIMEOUT
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
