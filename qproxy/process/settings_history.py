"""The settings of a server's last start or reload, so that the audit log has what changed between two starts.

The file has a digest of each setting and of each account's table, with a salt: the names tell what changed,
and no value is stored.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import secrets
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from qproxy.config import Config
from qproxy.system.directories import make_private_directory
from qproxy.telemetry.audit import AuditEntry

ACTOR = "start"
Digests = Mapping[str, Mapping[str, str]]
log = logging.getLogger("qproxy")


class SettingsHistory:
    """The digests of the settings that the server of one port applied last."""

    def __init__(self, home: Path, port: int) -> None:
        self._path = home / f"settings-{port}.json"

    def __repr__(self) -> str:
        return f"<SettingsHistory {self._path}>"

    def update(self, config: Config) -> list[AuditEntry]:
        """Store the settings in effect, and return how they differ from those before: not at all, if those
        are not known."""
        before = self._load()
        salt = before["salt"] if before else secrets.token_hex(16)
        after = {"settings": _digests(dataclasses.asdict(config), salt), "accounts": _accounts(config, salt)}
        if before is not None and after == {name: before[name] for name in after}:
            return []
        try:
            self._save({"salt": salt, **after})
        except OSError as error:
            log.warning("changes of settings before the next start will not be audited: %s", error)
        return [] if before is None else _entries(before, after)

    def _load(self) -> dict[str, Any] | None:
        """Return what is stored, None if it is missing or was damaged."""
        with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            stored = json.loads(self._path.read_bytes())
            salt, settings, accounts = str(stored["salt"]), stored["settings"], stored["accounts"]
            return {"salt": salt, "settings": dict(settings.items()), "accounts": dict(accounts.items())}
        return None

    def _save(self, stored: Mapping[str, Any]) -> None:
        make_private_directory(self._path.parent)
        draft = self._path.with_suffix(".tmp")
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with open(fd, "w") as file:
            json.dump(stored, file)
        draft.replace(self._path)


def _digests(values: Mapping[str, Any], salt: str) -> dict[str, str]:
    """Return a digest of each value."""
    return {
        name: hashlib.sha256(f"{salt}{json.dumps(value, sort_keys=True, default=str)}".encode()).hexdigest()
        for name, value in values.items()
    }


def _accounts(config: Config, salt: str) -> dict[str, str]:
    return _digests({entry.name: dataclasses.asdict(entry) for entry in config.all_accounts()}, salt)


def _entries(before: Digests, after: Digests) -> list[AuditEntry]:
    """Return the changes; a setting that one of two versions does not have is none."""
    old, new = before["settings"], after["settings"]
    names = sorted(name for name in old.keys() & new.keys() if old[name] != new[name])
    entries = [AuditEntry(ACTOR, "settings.change", ", ".join(names))] if names else []
    old, new = before["accounts"], after["accounts"]
    for name in sorted(old.keys() | new.keys()):
        action = "change" if name in old and name in new else "add" if name in new else "remove"
        if action != "change" or old[name] != new[name]:
            entries.append(AuditEntry(ACTOR, f"account.{action}", name))
    return entries
