"""Limits per minute for one process in memory, and for all processes of a machine in a small file.

The file is a table of fixed records, one per subject, read and written in place under `flock` on the event
loop: a few microseconds, where a database in a thread would add a millisecond to every request. The kernel
releases the lock of a process that is killed. Nothing is forced to the disk; a record of forty bytes is
written in one piece. (The file is not mapped into memory: truncating a mapped file kills its readers.)

A lock that is not free within `LOCK_TIMEOUT` (its holder was stopped while holding it), or a file that cannot
be used, costs accuracy and no request: this process then continues with its own levels.

A record holds two levels. Requests and tokens share the record of their subject; every other unit has one of
its own. Times in the file are those of the wall clock; a clock that was set back makes no request wait for
it.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from struct import Struct
from typing import NamedTuple

import trio

from qproxy.limits.token_bucket import REQUESTS, TOKENS, Amounts, RateLimitGrant, TokenBucket, try_acquire
from qproxy.system.directories import make_private_directory

HEADER = b"qproxy meters 1\n"
RECORD = Struct("<16sddd")
"""The subject, its two levels, and their time."""
SUBJECT_BYTES = 16
SLOTS = 4096
PROBE_SLOTS = 32
"""Slots from the one given by the subject's digest in which its record may be; the least recently used is
replaced."""
LOCK_TIMEOUT = 0.002
log = logging.getLogger("qproxy.backends")
Buckets = Mapping[str, TokenBucket]


class MemoryRateLimits:
    """Limits of this process alone. Beyond `max_subjects` the least recently used one is dropped."""

    def __init__(
        self, *, max_subjects: float = math.inf, clock: Callable[[], float] = trio.current_time
    ) -> None:
        self._max_subjects = max_subjects
        self._clock = clock
        self._by_subject: dict[bytes, dict[str, TokenBucket]] = {}

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {len(self)} subjects>"

    def __len__(self) -> int:
        return len(self._by_subject)

    async def reserve(self, subject: bytes, limits: Amounts, amounts: Amounts) -> RateLimitGrant:
        now = self._clock()
        return try_acquire(self._buckets(subject, limits, now), amounts, now)

    def settle(self, subject: bytes, limits: Amounts, amounts: Amounts) -> None:
        now = self._clock()
        _consume(self._buckets(subject, limits, now), amounts, now)

    async def aclose(self) -> None:
        pass

    def _buckets(self, subject: bytes, limits: Amounts, now: float) -> dict[str, TokenBucket]:
        """Return the subject's buckets, as the most recently used ones."""
        buckets = self._by_subject.pop(subject, None)
        if buckets is None:
            buckets = {unit: TokenBucket(limit, now) for unit, limit in limits.items()}
        self._by_subject[subject] = buckets
        if len(self._by_subject) > self._max_subjects:
            del self._by_subject[next(iter(self._by_subject))]
        return buckets


class FileRateLimits(MemoryRateLimits):
    """Limits in a file, which is opened on first use."""

    def __init__(
        self,
        path: Path,
        *,
        max_subjects: float = math.inf,
        clock: Callable[[], float] = trio.current_time,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(max_subjects=max_subjects, clock=clock)
        self.path = path
        self._wall_clock = wall_clock
        self._fd: int | None = None
        self._healthy = True

    async def reserve(self, subject: bytes, limits: Amounts, amounts: Amounts) -> RateLimitGrant:
        now = self._clock()
        buckets = self._buckets(subject, limits, now)
        try:
            records = self._read(subject, buckets, now)
            grant = try_acquire(buckets, amounts, now)
            self._write(records, now)
        finally:
            self._unlock()
        return grant

    def settle(self, subject: bytes, limits: Amounts, amounts: Amounts) -> None:
        now = self._clock()
        buckets = self._buckets(subject, limits, now)
        try:
            records = self._read(subject, buckets, now)
            _consume(buckets, amounts, now)
            self._write(records, now)
        finally:
            self._unlock()

    async def aclose(self) -> None:
        """Close the file until the next use."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _read(self, subject: bytes, buckets: Buckets, now: float) -> list[_Record]:
        """Lock the file and give the buckets its levels; return the records to be written, none if it cannot
        be used."""
        try:
            fd = self._open()
            if not _acquire_lock(fd):
                return []
            records = [_find_record(fd, *pair) for pair in _pairs(subject, buckets)]
        except OSError as error:
            self._log_failure(error)
            return []
        self._healthy = True
        for record in records:
            age = max(0.0, self._wall_clock() - record.at)
            for bucket, level in zip(record.buckets, record.levels, strict=True):
                if bucket is not None:
                    bucket.set_level(level, now - age)
        return records

    def _write(self, records: list[_Record], now: float) -> None:
        for record in records:
            first, second = (0.0 if bucket is None else bucket.available(now) for bucket in record.buckets)
            try:
                data = RECORD.pack(record.key, first, second, self._wall_clock())
                os.pwrite(self._open(), data, record.offset)
            except OSError as error:
                self._log_failure(error)

    def _unlock(self) -> None:
        if self._fd is not None:
            fcntl.flock(self._fd, fcntl.LOCK_UN)

    def _open(self) -> int:
        if self._fd is None:
            make_private_directory(self.path.parent)
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            if os.pread(fd, len(HEADER), 0) != HEADER:  # new, or not a file of limits
                os.truncate(fd, 0)
                os.pwrite(fd, HEADER, 0)
            self._fd = fd
        return self._fd

    def _log_failure(self, error: OSError) -> None:
        if self._healthy:
            log.warning("rate limits are not shared with other workers: file=%s: %s", self.path.name, error)
        self._healthy = False


BucketPair = tuple[TokenBucket | None, TokenBucket | None]


class _Record(NamedTuple):
    """One record of the table."""

    key: bytes
    buckets: BucketPair
    levels: tuple[float, float]
    at: float
    offset: int


def _pairs(subject: bytes, buckets: Buckets) -> Iterator[tuple[bytes, BucketPair]]:
    """Give every record of a subject: its key and the buckets whose levels it holds."""
    requests, tokens = buckets.get(REQUESTS), buckets.get(TOKENS)
    if requests is not None or tokens is not None:
        yield subject[:SUBJECT_BYTES], (requests, tokens)
    for unit, bucket in buckets.items():
        if bucket is not requests and bucket is not tokens:
            yield hashlib.sha256(subject + unit.encode()).digest()[:SUBJECT_BYTES], (bucket, None)


def _find_record(fd: int, key: bytes, buckets: BucketPair) -> _Record:
    """Read the record with this key, or a full one in place of the least recently used of its slots."""
    size = RECORD.size
    begin = len(HEADER) + int.from_bytes(key[:4], "little") % (SLOTS - PROBE_SLOTS) * size
    table = os.pread(fd, PROBE_SLOTS * size, begin).ljust(PROBE_SLOTS * size, b"\0")
    offset = table.find(key)
    while offset >= 0 and offset % size:
        offset = table.find(key, offset + 1)
    if offset >= 0:
        _, first, second, at = RECORD.unpack_from(table, offset)
        return _Record(key, buckets, (first, second), at, begin + offset)
    times = [record[3] for record in RECORD.iter_unpack(table)]
    offset = times.index(min(times)) * size
    return _Record(key, buckets, (float("inf"), float("inf")), 0.0, begin + offset)


def _acquire_lock(fd: int) -> bool:
    """Try to lock the file within LOCK_TIMEOUT."""
    limit = time.monotonic() + LOCK_TIMEOUT
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > limit:
                return False
            time.sleep(0)  # the holder needs a core to release it


def _consume(buckets: Buckets, amounts: Amounts, now: float) -> None:
    for unit, bucket in buckets.items():
        if unit in amounts:
            bucket.acquire(amounts[unit], now)
