"""Backups of the data directory: one private archive, with a manifest that a restore checks byte by byte.

SQLite files are copied by SQLite, so that each copy is one state although servers write to it; all other
files are replaced whole by their writers or appended to. Credentials are copied as they are: sealed ones stay
sealed, with a key that is in the system's keyring and in no backup.

A restore trusts no name and no size in an archive, and changes nothing before all of it has been read.
"""

from __future__ import annotations

import hashlib
import io
import os
import sqlite3
import tarfile
import tempfile
import time
import zlib
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import IO

from qproxy.backends.backup import Backup, BackupError, BackupFile, read_manifest, write_manifest
from qproxy.system.directories import make_private_directory
from qproxy.system.pidfile import serving_ports
from qproxy.system.sqlite import open_readonly
from qproxy.version import VERSION

MANIFEST = "qproxy-backup.json"
MAX_MANIFEST_BYTES = 4 * 1024 * 1024
CHUNK = 1024 * 1024
BUSY_SECONDS = 10.0
"""Seconds for another process to finish its write."""
SQLITE_HEADER = b"SQLite format 3\0"
TEMPORARY = (".lock", ".new", "-wal", "-shm", "-journal")
"""Ends of names of files that belong to a running process, or to a database that is copied."""
SKIPPED_DIRECTORIES = ("workers", ".restore-", "before-restore-")
"""Starts of names of directories with sockets, and with what a restore put aside."""


def write_backup(home: Path, archive: Path, *, force: bool, now: float) -> Backup:
    """Back up the data directory. Raises BackupError; an existing archive is replaced with `force` only."""
    if archive.exists() and not force:
        raise BackupError(f"{archive} exists: choose another name, or replace it with --force.")
    if archive.resolve().is_relative_to(home.resolve()):
        raise BackupError(f"{archive} is in the data directory: choose a place outside of {home}.")
    sources = dict(_data_files(home))
    if not sources:
        raise BackupError(f"{home}: there is nothing to back up.")
    with tempfile.TemporaryDirectory(prefix=".qproxy-backup-", dir=archive.absolute().parent) as staging:
        staged = {
            name: _stage(path, Path(staging) / str(n)) for n, (name, path) in enumerate(sources.items())
        }
        created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now))
        files = tuple(BackupFile(name, path.stat().st_size, _digest(path)) for name, path in staged.items())
        backup = Backup(VERSION, created, files)
        new = Path(staging) / "archive"
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            with tarfile.open(fileobj=file, mode="w:gz", compresslevel=6) as tar:
                manifest = write_manifest(backup)
                _add(tar, MANIFEST, len(manifest), io.BytesIO(manifest), now)
                for entry in files:
                    with staged[entry.name].open("rb") as content:
                        _add(tar, entry.name, entry.size, content, now)
            file.flush()
            os.fsync(file.fileno())
        new.replace(archive)
    return backup


def restore_backup(archive: Path, home: Path, *, force: bool, now: float) -> tuple[Backup, Path | None]:
    """Restore the data directory; return what was restored, and where `force` put the former content.

    Raises BackupError, after which the data directory is as it was, unless a file could not be moved.
    """
    if not archive.exists():
        raise BackupError(f"{archive}: no such file.")
    ports = serving_ports(home)
    if ports:
        raise BackupError(f"a server of {home} is running (port {ports[0]}): stop it first.")
    former = sorted(home.iterdir()) if home.is_dir() else []
    if former and not force:
        raise BackupError(f"{home} is not empty: with --force its content is put aside first.")
    make_private_directory(home)
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now))
    aside = home / f"before-restore-{stamp}"
    with tempfile.TemporaryDirectory(prefix=".restore-", dir=home) as staging:
        backup = _extract(archive, Path(staging))
        try:
            if former:
                aside.mkdir(mode=0o700)
            for path in former:
                path.rename(aside / path.name)
            for path in Path(staging).iterdir():
                path.rename(home / path.name)
        except OSError as error:
            raise BackupError(f"{home}: not all of it was restored ({error}). See {aside}.") from None
    return backup, aside if former else None


def _data_files(home: Path) -> Iterator[tuple[str, Path]]:
    """Yield the files of the data directory that a backup holds, by name."""
    for directory, names, files in os.walk(home):
        names[:] = sorted(name for name in names if not name.startswith(SKIPPED_DIRECTORIES))
        for name in sorted(files):
            path = Path(directory, name)
            if name.endswith(TEMPORARY) or name.startswith("serving-") or not path.is_file():
                continue
            yield path.relative_to(home).as_posix(), path


def _stage(source: Path, copy: Path) -> Path:
    """Copy a file to a private one. Raises BackupError."""
    try:
        fd = os.open(copy, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(fd, "wb") as target, source.open("rb") as content:
            head = content.read(len(SQLITE_HEADER))
            if head != SQLITE_HEADER and not Path(f"{source}-wal").exists():
                target.write(head)
                while chunk := content.read(CHUNK):
                    target.write(chunk)
                return copy
        with (
            closing(open_readonly(source, patience=BUSY_SECONDS)) as database,
            closing(sqlite3.connect(copy)) as into,
        ):
            database.backup(into)
            into.execute("PRAGMA journal_mode = DELETE")  # one file; its member selects WAL again
    except (OSError, sqlite3.Error) as error:
        raise BackupError(f"{source}: cannot be copied ({error}).") from None
    return copy


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _add(tar: tarfile.TarFile, name: str, size: int, content: IO[bytes], now: float) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode, member.mtime = size, 0o600, int(now)
    tar.addfile(member, content)


def _extract(archive: Path, directory: Path) -> Backup:
    """Extract a whole archive and check it. Raises BackupError."""
    try:
        with tarfile.open(archive, "r:gz") as tar:
            first = tar.next()
            if first is None or first.name != MANIFEST or not first.isreg():
                raise ValueError("it has no manifest")
            if first.size > MAX_MANIFEST_BYTES:
                raise ValueError("its manifest is too large")
            backup = read_manifest(_content(tar, first).read())
            for entry in backup.files:
                member = tar.next()
                if (
                    member is None
                    or not member.isreg()
                    or (member.name, member.size) != (entry.name, entry.size)
                ):
                    raise ValueError(f"{entry.name} is missing or of another size")
                _extract_file(_content(tar, member), directory / entry.name, entry)
            if tar.next() is not None:
                raise ValueError("it has more files than its manifest")
            while tar.fileobj is not None and tar.fileobj.read(CHUNK):
                pass  # to the end, where gzip has its checksum
    except FileNotFoundError:
        raise BackupError(f"{archive}: no such file.") from None
    except (OSError, EOFError, ValueError, KeyError, TypeError, zlib.error, tarfile.TarError) as error:
        reason = getattr(error, "strerror", None) or error
        raise BackupError(f"{archive}: not a complete backup of qproxy ({reason}).") from None
    return backup


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    content = tar.extractfile(member)
    assert content is not None  # of a regular file
    return content


def _extract_file(content: IO[bytes], path: Path, entry: BackupFile) -> None:
    """Write one file, readable by its owner only. Raises ValueError if it is not the one of the manifest."""
    make_private_directory(path.parent)
    digest = hashlib.sha256()
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        while chunk := content.read(CHUNK):
            digest.update(chunk)
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
    if digest.hexdigest() != entry.sha256:
        raise ValueError(f"{entry.name} is damaged")
