"""A backup of the data directory: its files and its manifest. No I/O.

A manifest is read from an archive that anyone may have made: its names stay below the directory.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import PurePosixPath
from typing import Any

FORMAT = 1


class BackupError(Exception):
    """A backup cannot be written or restored; the message has the reason."""


@dataclass(frozen=True, slots=True)
class BackupFile:
    """One file of a backup."""

    name: str
    """Its path in the data directory, with slashes."""
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Backup:
    """The content of a backup."""

    version: str
    """The qproxy that wrote it."""
    created: str
    """UTC, ISO 8601."""
    files: tuple[BackupFile, ...]


def write_manifest(backup: Backup) -> bytes:
    """Return the manifest of a backup."""
    return json.dumps({"format": FORMAT, **asdict(backup)}, indent=1).encode()


def read_manifest(data: bytes) -> Backup:
    """Parse a manifest. Raises ValueError, KeyError or TypeError."""
    fields: dict[str, Any] = json.loads(data)
    if fields["format"] != FORMAT:
        raise ValueError(f"format {fields['format']} is unknown: it needs another version of qproxy")
    files = tuple(BackupFile(**entry) for entry in fields["files"])
    for entry in files:
        path = PurePosixPath(entry.name)
        if path.is_absolute() or ".." in path.parts or str(path) != entry.name or "\0" in entry.name:
            raise ValueError(f"the name {entry.name!r} is not allowed")
    return Backup(str(fields["version"]), str(fields["created"]), files)
