"""Another configuration for a server that runs: read, checked, and taken up whole or not at all.

A reload makes the parts anew from the new settings, keeps those whose settings are the same (accounts with what is
known of them, the connections to their servers), and gives them to the server in one step between two requests.
Requests under way keep what they have: no stream is dropped.  What cannot be used is said in the log, and to whoever
asked, and the old configuration stays.  Who asked, and where the answer stands, is in `running`.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import trio

from qproxy.config import Config
from qproxy.config.accounts import ConfigError
from qproxy.server import Server
from qproxy.system.pidfile import PidFile

RESTART_REQUIRED = frozenset({
    "host", "port", "certfile", "keyfile", "max_clients", "max_header_bytes", "client_idle_timeout", "max_connection_age",
    "accounts_file", "client_write_timeout", "graceful_timeout", "body_timeout", "max_body_bytes",
    "metrics_access", "tracing", "ledger", "ledger_days", "workers", "meters_file",
    "wrong_keys_file", "wrong_keys_per_minute", "access_file",
})  # fmt: skip
"""Settings that a running server cannot take up."""
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
        self._lock = trio.Lock()

    async def reload(self) -> tuple[bool, str]:
        """Whether the configuration was taken up, and a line that says so."""
        async with self._lock:
            return await self._reload()

    async def _reload(self) -> tuple[bool, str]:
        try:
            config = self._load()
            config.check()
            state = self._assemble(config, self._config, self._server)
        except ConfigError as error:
            log.error("not reloaded, the configuration from before stays: %s", error)
            return False, str(error)
        changed = {f.name for f in fields(Config) if getattr(config, f.name) != getattr(self._config, f.name)}
        self._config = config
        await self._server.reconfigure(state)
        message = f"reloaded; changed: {', '.join(sorted(changed - RESTART_REQUIRED)) or 'nothing'}"
        if changed & RESTART_REQUIRED:
            message += f"; only a restart changes {', '.join(sorted(changed & RESTART_REQUIRED))}"
        log.info("%s", message)
        return True, message

    async def serve_reloads(self, home: Path, port: int) -> None:
        """Reload at every SIGHUP, and say so in the process's file."""
        with trio.open_signal_receiver(signal.SIGHUP) as signals, PidFile(home, port) as running:
            async for _ in signals:
                running.record_reload(*await self.reload())

    async def on_sighup(self) -> None:
        """Reload at every SIGHUP; for a worker, whose supervisor has the file."""
        with trio.open_signal_receiver(signal.SIGHUP) as signals:
            async for _ in signals:
                await self.reload()
