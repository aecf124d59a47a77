"""The audit log: who changed keys, accounts, settings or stored data, and when.

An entry has names, limits and addresses, never a secret or its digest. `backends.local.audit` has the member
that writes entries to a file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One change that was made."""

    actor: str
    """Who: `cli USER`, `dashboard ADDRESS`, `admin API ADDRESS`, `reload` or `start`."""
    action: str
    """What, as `noun.verb`: `key.create`."""
    subject: str
    """The changed key, account or settings."""
    detail: str = ""


class AuditLog(Protocol):
    """A log of entries with their times."""

    async def record(self, entry: AuditEntry) -> None:
        """Record a change that was made; an entry that cannot be written is an error in the log of the
        server."""
        ...
