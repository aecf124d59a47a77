"""What client keys have left of their minute, for all processes of a machine: one small file.

A table of fixed records, one a key, read and written in place under `flock`, on the event loop: a few microseconds, where
a database in a thread would take a millisecond of every request.  The kernel takes the lock back from a process that
is killed.  Nothing is forced to the disk; a record of forty bytes is written in one piece.  (Not mapped into memory: a
mapped file that somebody truncates kills who reads it.)

A lock that is not free within `PATIENCE` (its holder was stopped in the middle), or a file that cannot be used, costs
accuracy and no request: this process then goes on with its own view.

Times in the file are those of the wall clock; a clock that was set back makes nobody wait for it.
"""

from __future__ import annotations

import fcntl
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from struct import Struct

from qproxy.access.rate_limits import Buckets
from qproxy.system.directories import make_private_directory

HEADER = b"qproxy meters 1\n"
RECORD = Struct("<16sddd")
"""Whose, requests and tokens left, and when."""
SLOTS = 4096
PROBE_SLOTS = 32
"""Where a key may stand: so many places from where its digest says; the longest unused one is taken over."""
LOCK_TIMEOUT = 0.002
log = logging.getLogger("qproxy.meters")


class FileRateLimits:
    """The file, as one process uses it; opened when it is first used."""

    def __init__(self, path: Path, *, wall_clock: Callable[[], float] = time.time) -> None:
        self.path = path
        self._wall_clock = wall_clock
        self._fd: int | None = None
        self._healthy = True

    def __repr__(self) -> str:
        return f"<MeterFile {self.path}>"

    @contextmanager
    def transaction(self, identity: bytes, buckets: Buckets, now: float) -> Iterator[None]:
        """As `meters.Shelf` says."""
        place = self._read(identity[:16], buckets, now)
        try:
            yield
            if place is not None:
                self._write(place, identity[:16], buckets, now)
        finally:
            if self._fd is not None:
                fcntl.flock(self._fd, fcntl.LOCK_UN)

    def _read(self, identity: bytes, buckets: Buckets, now: float) -> int | None:
        """Take the lock and fill the buckets; where their record stands, or None where that cannot be."""
        try:
            fd = self._open()
            if not _locked(fd):
                return None
            begin = len(HEADER) + int.from_bytes(identity[:4], "little") % (SLOTS - PROBE_SLOTS) * RECORD.size
            table = os.pread(fd, PROBE_SLOTS * RECORD.size, begin).ljust(PROBE_SLOTS * RECORD.size, b"\0")
            number, lefts, at = _found(table, identity)
        except OSError as error:
            self._log_failure(error)
            return None
        self._healthy = True
        age = max(0.0, self._wall_clock() - at)
        for bucket, left in zip(buckets, lefts, strict=True):
            if bucket is not None:
                bucket.set_level(left, now - age)
        return begin + number * RECORD.size

    def _write(self, place: int, identity: bytes, buckets: Buckets, now: float) -> None:
        requests, tokens = (bucket.available(now) if bucket is not None else 0.0 for bucket in buckets)
        try:
            os.pwrite(self._open(), RECORD.pack(identity, requests, tokens, self._wall_clock()), place)
        except OSError as error:
            self._log_failure(error)

    def _open(self) -> int:
        if self._fd is None:
            make_private_directory(self.path.parent)
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            if os.pread(fd, len(HEADER), 0) != HEADER:  # a new one, or none of ours
                os.truncate(fd, 0)
                os.pwrite(fd, HEADER, 0)
            self._fd = fd
        return self._fd

    def close(self) -> None:
        """Until the next use."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _log_failure(self, error: OSError) -> None:
        if self._healthy:
            log.warning("%s: limits a minute are kept by this process alone: %s", self.path.name, error)
        self._healthy = False


def _locked(fd: int) -> bool:
    """Whether the lock could be had in time."""
    limit = time.monotonic() + LOCK_TIMEOUT
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > limit:
                return False
            time.sleep(0)  # whoever has it needs a core to give it back


def _found(table: bytes, identity: bytes) -> tuple[int, tuple[float, float], float]:
    """Which record of a piece of the table is somebody's, and what it says; a full minute for one who is new."""
    records = list(RECORD.iter_unpack(table))
    for number, (owner, requests, tokens, at) in enumerate(records):
        if owner == identity:
            return number, (requests, tokens), at
    oldest = min(range(len(records)), key=lambda number: records[number][3])
    return oldest, (float("inf"), float("inf")), 0.0
