"""Audit entries of commands."""

from __future__ import annotations

import os
import pwd

import trio

from qproxy.config import Config
from qproxy.telemetry.audit import AuditEntry


def current_actor() -> str:
    """Return who runs the command: the user of the process."""
    try:
        return f"cli {pwd.getpwuid(os.getuid()).pw_name}"
    except KeyError:  # a container's user without a name
        return f"cli uid {os.getuid()}"


def record_change(config: Config, entry: AuditEntry) -> None:
    """Record a change that a command made."""
    from qproxy.backends.factory import open_audit

    trio.run(open_audit(config).record, entry)
