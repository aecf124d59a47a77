"""The audit log of a machine: a file with one JSON object per line, to which all processes append.

The file is opened for every entry and written in one piece, so that log rotation may move it away at any
time. Each entry is a line of the server's log, too (logger `qproxy.audit`).
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import trio

from qproxy.system.directories import make_private_directory
from qproxy.telemetry.audit import AuditEntry
from qproxy.telemetry.redaction import Redactor

WRITE_TIMEOUT = 5.0
log = logging.getLogger("qproxy.audit")


class FileAuditLog:
    """The audit log; without a path, only the server's log has the entries."""

    def __init__(
        self, path: Path | None, *, secrets: Iterable[str] = (), wall_clock: Callable[[], float] = time.time
    ) -> None:
        self._path = path
        self._wall_clock = wall_clock
        self._redactor = Redactor(secrets)

    def __repr__(self) -> str:
        return f"<FileAuditLog {self._path or 'in the log'}>"

    async def record(self, entry: AuditEntry) -> None:
        line = self._format(entry)
        log.info("audit: %s", line)
        if self._path is None:
            return
        try:
            with trio.fail_after(WRITE_TIMEOUT):
                await trio.to_thread.run_sync(_append, self._path, line, abandon_on_cancel=True)
        except (OSError, trio.TooSlowError) as error:
            reason = str(error) or f"no answer of the disk within {WRITE_TIMEOUT:g} s"
            log.error("cannot write the audit log (setting audit_file): %s", reason)

    def _format(self, entry: AuditEntry) -> str:
        """Return the entry as one line; people choose names, so a secret given as one is hidden."""
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self._wall_clock()))
        fields = {
            "actor": entry.actor,
            "action": entry.action,
            "subject": entry.subject,
            "detail": entry.detail,
        }
        values = {name: self._redactor.text(value) for name, value in fields.items() if value}
        return json.dumps({"at": at, **values})


def _append(path: Path, line: str) -> None:
    make_private_directory(path.parent)
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, f"{line}\n".encode())
    finally:
        os.close(fd)
