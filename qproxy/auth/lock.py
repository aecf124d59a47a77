"""Who may refresh an account or write its file: one process at a time.

Here: taking and giving back the two locks, in blocking calls that do not wait.  Not here: waiting (`auth.disk`).

Two locks, because there are two kinds of neighbours.  Among processes of qproxy the kernel decides (`flock` on a file
that stays): it frees the lock of a process that was killed at once, and no clock can fool it.  qwen-code knows another
one, a file `oauth_creds.lock` that exists while it is held; that one is honoured too where a directory is shared with it.
By its rules a lock older than 35 s belongs to nobody and is stolen by renaming it; and only our own is ever removed.
(qwen-code itself removes it at its exit, whoever holds it: among programs the lock is best effort.)
"""

from __future__ import annotations

import fcntl
import os
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

STALE_SECONDS = 35.0
"""More than qwen-code's 30 s for one refresh."""


class FileLock:
    """The right to one account's tokens, across processes."""

    def __init__(
        self, credentials: Path, *, shared: bool = False, wall_clock: Callable[[], float] = time.time
    ) -> None:
        self._kernel_lock = credentials.with_suffix(".flock")
        self._file = credentials.with_suffix(".lock")
        self._shared = shared
        self._wall_clock = wall_clock
        self._fd = -1
        self._owned: bytes | None = None

    def __repr__(self) -> str:
        return f"<Lock {self._file} {'held' if self._fd >= 0 else 'free'}>"

    def acquire(self) -> bool:
        """Whether both locks are ours now.  OSError where there can be none (a read-only or full disk)."""
        fd = os.open(self._kernel_lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not self._shared or self._create() or (self._steal() and self._create()):
                self._fd, fd = fd, -1
                return True
            return False
        except BlockingIOError:
            return False
        finally:
            if fd >= 0:
                os.close(fd)

    def release(self) -> None:
        """Release both locks; the file only if it still is the one that we made."""
        ours, self._owned = self._owned, None
        if ours is not None:
            with suppress(OSError):
                if self._file.read_bytes() == ours:
                    os.unlink(self._file)
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)

    def _create(self) -> bool:
        name = str(uuid.uuid4()).encode()
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            fd = os.open(self._file, flags, 0o600)
        except FileExistsError:
            return False
        try:
            os.write(fd, name)
        finally:
            os.close(fd)
        self._owned = name
        return True

    def _steal(self) -> bool:
        """Take away a lock that is stale; whether there is none now."""
        try:
            found = os.lstat(self._file)
            if abs(self._wall_clock() - found.st_mtime) <= STALE_SECONDS:
                return False
            aside = f"{self._file}.stale.{uuid.uuid4()}"
            os.rename(self._file, aside)
        except FileNotFoundError:
            return True
        if not os.path.samestat(found, os.lstat(aside)):
            with suppress(OSError):  # another thief was faster, and this is its living lock
                os.link(aside, self._file)
        os.unlink(aside)
        return True
