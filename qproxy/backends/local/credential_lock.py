"""Locks on an account's credential file: one process at a time refreshes or writes.

Blocking calls that do not wait; waiting is `blocking`'s. There are two locks, because there are two kinds of
other programs. Among processes of qproxy the kernel decides (`flock` on a file that stays): it releases the
lock of a killed process at once, and no clock can fool it. qwen-code uses another one, a file
`oauth_creds.lock` that exists while it is held; it is respected too where a directory is shared with
qwen-code. By its rules a lock older than 35 s is stale and taken over by renaming it; and only our own is
ever removed. (qwen-code itself removes it at its exit, even if another process holds it: among programs the
lock is best effort.)
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
"""Longer than qwen-code's 30 s for one refresh."""


class FileLock:
    """Exclusive access to one account's tokens, across processes."""

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
        return f"<FileLock {self._file} {'held' if self._fd >= 0 else 'free'}>"

    def acquire(self) -> bool:
        """Try to take both locks. Raises OSError if they cannot exist (a read-only or full disk)."""
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
        """Release both locks; the file only if it is still the one created here."""
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
        """Remove a stale lock; return whether there is none now."""
        try:
            found = os.lstat(self._file)
            if abs(self._wall_clock() - found.st_mtime) <= STALE_SECONDS:
                return False
            aside = f"{self._file}.stale.{uuid.uuid4()}"
            os.rename(self._file, aside)
        except FileNotFoundError:
            return True
        if not os.path.samestat(found, os.lstat(aside)):
            with suppress(OSError):  # another process took over first, and this is its lock
                os.link(aside, self._file)
        os.unlink(aside)
        return True
