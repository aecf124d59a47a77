"""Reloads the configuration of a running server: read, checked, and applied whole or not at all.

A reload builds another `ServerState` from the new settings and the running one (`bootstrap.reload`), which
the server swaps in between two requests.  Requests in flight keep the parts that they have: no stream is
dropped.  If the settings are invalid, the error is logged and reported to `qproxy reload`, and the server
keeps its configuration.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path

import trio

from qproxy.backends.api_keys import has_api_keys
from qproxy.bootstrap.reload import RESTART_REQUIRED, effective_config, rebuild_state
from qproxy.config import Config
from qproxy.config.accounts import ConfigError
from qproxy.process.settings_history import SettingsHistory
from qproxy.server import Server, ServerState
from qproxy.system.pidfile import PidFile
from qproxy.telemetry.audit import AuditEntry

log = logging.getLogger("qproxy")


class Reloader:
    """Reloads one server."""

    def __init__(
        self,
        server: Server,
        config: Config,
        load: Callable[[], Config],
        rebuild: Callable[[Config, Config, ServerState], ServerState] = rebuild_state,
        *,
        audited: bool = True,
        history: SettingsHistory | None = None,
    ) -> None:
        """`audited` records changes in the audit log: of several workers, one does. `history` stores the
        settings for the next start."""
        self._server = server
        self._config = config
        """The settings in effect."""
        self._load = load
        self._rebuild = rebuild
        self._audited = audited
        self._history = history
        self._lock = trio.Lock()

    def settings(self) -> Config:
        """Return the settings in effect."""
        return self._config

    async def reload(self) -> tuple[bool, str]:
        """Return whether the configuration was applied, and a line about it."""
        async with self._lock:
            return await self._reload()

    async def _reload(self) -> tuple[bool, str]:
        try:
            config = self._load()
            config.check(has_api_keys)
            effective = effective_config(config, self._config)
            state = self._rebuild(effective, self._config, self._server.state)
        except ConfigError as error:
            log.error("reload failed, keeping the current configuration: %s", error)
            return False, str(error)
        changed = {f.name for f in fields(Config) if getattr(config, f.name) != getattr(self._config, f.name)}
        entries = list(audit_entries(self._config, effective)) if self._audited else []
        self._config = effective
        await self._server.reconfigure(state)
        for entry in entries:
            await state.audit.record(entry)
        if self._history is not None:
            self._history.update(effective)  # the audit log has these changes
        message = f"reloaded; changed: {', '.join(sorted(changed - RESTART_REQUIRED)) or 'nothing'}"
        if changed & RESTART_REQUIRED:
            message += f"; a restart is required for {', '.join(sorted(changed & RESTART_REQUIRED))}"
        log.info("%s", message)
        return True, message

    async def serve_reloads(self, home: Path, port: int) -> None:
        """Reload at every SIGHUP, and write the outcome to the process's file."""
        with trio.open_signal_receiver(signal.SIGHUP) as signals, PidFile(home, port) as running:
            async for _ in signals:
                running.record_reload(*await self.reload())

    async def on_sighup(self) -> None:
        """Reload at every SIGHUP; for a worker, whose supervisor writes the file."""
        with trio.open_signal_receiver(signal.SIGHUP) as signals:
            async for _ in signals:
                await self.reload()


def audit_entries(before: Config, after: Config) -> Iterator[AuditEntry]:
    """Yield what changed: the names of settings, and each account; values may be secrets."""
    names = [f.name for f in fields(Config) if getattr(before, f.name) != getattr(after, f.name)]
    if names:
        yield AuditEntry("reload", "settings.change", ", ".join(sorted(names)))
    old, new = ({account.name: account for account in config.all_accounts()} for config in (before, after))
    for name in sorted(old.keys() | new.keys()):
        if name not in new:
            yield AuditEntry("reload", "account.remove", name)
        elif name not in old:
            yield AuditEntry("reload", "account.add", name)
        elif old[name] != new[name]:
            yield AuditEntry("reload", "account.change", name)
