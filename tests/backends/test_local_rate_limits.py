"""The file of rate limits: processes share the limits, and no fault of the file fails a request."""

import fcntl
import subprocess
import sys

import pytest

from qproxy.access.api_keys import ApiKey
from qproxy.access.rate_limits import KeyRateLimiters
from qproxy.backends.local.rate_limits import (
    HEADER,
    PROBE_SLOTS,
    RECORD,
    SLOTS,
    FileRateLimits,
    MemoryRateLimits,
)
from qproxy.wire.errors import RequestError
from tests.access.test_rate_limits import create_key
from tests.helpers import HELLO, world


class Clock:
    """A clock that a test sets."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def key(n=0, **limits):
    return ApiKey(f"key_{n}", f"{n:064x}", "bob", **limits)


class Process:
    """A process's view of the file, with a clock of its own."""

    def __init__(self, path, wall, at=0.0):
        self.clock = Clock()
        self.clock.now = at
        self.store = FileRateLimits(path, clock=self.clock, wall_clock=wall)
        self.limiters = KeyRateLimiters(self.store, clock=self.clock)

    async def granted(self, limited, tokens=0):
        limiter = self.limiters.for_key(limited)
        assert limiter is not None
        try:
            return await limiter.reserve(tokens)
        except RequestError:
            return None


@pytest.fixture
async def processes(tmp_path):
    """Yield two processes with different clocks, and the wall clock."""
    wall = Clock()
    wall.now = 1e9
    views = [Process(tmp_path / "meters", wall, at) for at in (0.0, 500.0)]
    yield *views, wall
    for view in views:
        await view.store.aclose()


async def test_two_processes_share_a_rate_limit(processes):
    """A reservation or a return in one process holds in both, although their monotonic clocks differ."""
    first_process, second_process, wall = processes
    limited = key(rpm=3, tpm=100)
    first = await first_process.granted(limited, tokens=60)
    assert await second_process.granted(limited, tokens=30)
    assert not await first_process.granted(limited, tokens=30)
    first.settle(0, counts=False)
    assert await second_process.granted(limited, tokens=70)
    wall.now += 60
    first_process.clock.now += 60
    assert await first_process.granted(limited, tokens=100)
    assert first_process.limiters.for_key(limited).status()[-1][:3] == ("tokens", 100, 0)


async def test_levels_survive_a_restart(processes):
    """A restart, even of the machine, does not refill a bucket, and a clock that was set back delays no
    request."""
    first_process, second_process, wall = processes
    assert await first_process.granted(key(rpm=1))
    await first_process.store.aclose()
    second_process.clock.now = -1000.0
    assert not await second_process.granted(key(rpm=1))
    wall.now -= 1e6
    assert not await second_process.granted(key(rpm=1))
    second_process.clock.now += 59
    assert not await second_process.granted(key(rpm=1))
    wall.now += 1e6 + 60
    second_process.clock.now += 1
    assert await second_process.granted(key(rpm=1))


async def test_changed_limits_reset_the_levels(processes):
    """A key with changed limits has full buckets, as within one process."""
    first_process, second_process, _ = processes
    assert await first_process.granted(key(rpm=1))
    assert await second_process.granted(key(rpm=2))


async def test_more_keys_than_slots(processes):
    """Keys beyond the slots of the file still have limits, and the file does not grow."""
    first_process, second_process, wall = processes
    for n in range(300):
        wall.now += 1
        assert await first_process.granted(key(n, rpm=1))
    assert not any([await second_process.granted(key(n, rpm=1)) for n in range(280, 300)])
    assert first_process.store.path.stat().st_size <= len(HEADER) + SLOTS * RECORD.size


async def test_the_least_recently_used_slot_is_replaced(processes):
    """If all probed slots are taken, the least recently used subject is dropped."""
    first_process, second_process, wall = processes
    limits = {"requests": 1}
    subjects = [bytes(4) + bytes([n + 1]) * 28 for n in range(PROBE_SLOTS + 1)]
    for subject in subjects:
        wall.now += 1
        first_process.store.settle(subject, limits, {"requests": 1})
    for subject, left in ((subjects[-1], 0), (subjects[0], 1)):
        assert (await second_process.store.reserve(subject, limits, {})).available == {"requests": left}


async def test_a_record_is_not_matched_across_two_others(processes):
    """Bytes equal to a subject's in the middle of the table are not its record."""
    first_process, second_process, _ = processes
    subject = bytes(4) + RECORD.pack(bytes(16), 1.0, 1.0, 1e9)[16:28] + bytes(16)
    first_process.store.settle(bytes(16), {"requests": 1.0, "tokens": 1.0}, {})
    assert (await second_process.store.reserve(subject, {"requests": 5}, {})).available == {"requests": 5}


UNITS = {"requests": 10, "usd": 2.5, "seconds": 600, "characters": 1e6, "pictures": 3}


async def test_units_with_any_name(processes):
    """Every unit of a subject has its level, all are granted together or none, and all processes share
    them."""
    first_process, second_process, _ = processes
    subject = bytes(range(32))
    assert (
        await first_process.store.reserve(subject, UNITS, {"requests": 1, "usd": 2.0, "pictures": 1})
    ).granted
    grant = await second_process.store.reserve(subject, UNITS, {"requests": 1, "usd": 1.0})
    assert not grant.granted
    assert grant.available == {**UNITS, "requests": 9, "usd": 0.5, "pictures": 2}
    second_process.store.settle(subject, UNITS, {"usd": -1.5})
    assert (await first_process.store.reserve(subject, UNITS, {"usd": 2.0})).granted


async def test_a_file_of_the_first_format(tmp_path):
    """A record of 0.1.0's first file format is read: the format of requests and tokens has not changed."""
    wall, subject, path = Clock(), bytes(range(1, 33)), tmp_path / "meters"
    wall.now = 1e9
    begin = len(HEADER) + int.from_bytes(subject[:4], "little") % (SLOTS - PROBE_SLOTS) * RECORD.size
    table = bytearray(begin - len(HEADER)) + RECORD.pack(subject[:16], 3.0, 40.0, 1e9)
    path.write_bytes(b"qproxy meters 1\n" + table)
    first_process = Process(path, wall)
    grant = await first_process.store.reserve(subject, {"requests": 10, "tokens": 100}, {})
    assert grant.available == {"requests": 3, "tokens": 40}
    await first_process.store.aclose()


@pytest.mark.parametrize("content", [b"", b"x" * 5000, HEADER + b"\xff" * 100])
async def test_an_invalid_file_is_replaced(content, tmp_path):
    """The file becomes a file of limits; an impossible value is no limit."""
    path = tmp_path / "meters"
    path.write_bytes(content)
    first_process = Process(path, Clock())
    assert await first_process.granted(key(rpm=1))
    assert not await first_process.granted(key(rpm=1))
    await first_process.store.aclose()


async def test_a_lock_that_stays_held(processes):
    """A process that cannot acquire the lock in time continues with its own levels."""
    first_process, _, _ = processes
    assert await first_process.granted(key(rpm=2))
    with first_process.store.path.open() as other:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert await first_process.granted(key(rpm=2))
        assert not await first_process.granted(key(rpm=2))
    with first_process.store.path.open() as other:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the lock is free again


async def test_an_unusable_path_is_logged_once(tmp_path, caplog):
    """The limits then hold within the process."""
    (tmp_path / "file").write_text("")
    first_process = Process(tmp_path / "file" / "meters", Clock())
    assert await first_process.granted(key(rpm=1))
    assert not await first_process.granted(key(rpm=1))
    assert caplog.text.count("not shared with other workers") == 1


async def test_memory_is_bounded():
    """The least recently used subject is dropped."""
    store = MemoryRateLimits(max_subjects=3, clock=Clock())
    for n in range(5):
        store.settle(b"%d" % n, {"requests": 1}, {"requests": 1})
        store.settle(b"0", {"requests": 1}, {})
    assert len(store) == 3
    assert not (await store.reserve(b"0", {"requests": 1}, {"requests": 1})).granted


HAMMER = """
import sys, pathlib, trio
from qproxy.backends.local.rate_limits import FileRateLimits

async def main():
    file, limits = FileRateLimits(pathlib.Path(sys.argv[1])), {"tokens": 10_000}
    granted = [(await file.reserve(bytes(32), limits, {"tokens": 100})).granted for _ in range(100)]
    print(sum(granted))

trio.run(main)
"""


def test_concurrent_processes_share_one_limit(tmp_path):
    """Three concurrent processes together get the available amount and the refill meanwhile."""
    command = [sys.executable, "-c", HAMMER, str(tmp_path / "meters")]
    racing = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    taken = sum(int(child.communicate(timeout=60)[0]) for child in racing)
    assert 100 <= taken <= 110  # 1.7 are refilled per second


async def test_two_servers(tmp_path):
    """A key's requests per minute are counted across all servers that share the file."""
    headers, setting = create_key(tmp_path, rpm=2)
    setting["rate_limits_file"] = str(tmp_path / "meters")
    async with world(**setting) as first_process, world(**setting) as second_process:
        found = [
            (await it.post(HELLO, headers=headers))[0]
            for it in (first_process, second_process, first_process, second_process)
        ]
    assert found == [200, 200, 429, 429]
