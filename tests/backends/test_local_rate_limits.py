"""The file of keys' limits: several processes take from the same minute, and nothing that happens to it costs
a request."""

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
from tests.access.test_rate_limits import made
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
    """One process's view of the file, by a clock of its own."""

    def __init__(self, path, wall, at=0.0):
        self.clock = Clock()
        self.clock.now = at
        self.store = FileRateLimits(path, clock=self.clock, wall_clock=wall)
        self.limiters = KeyRateLimiters(self.store, clock=self.clock)

    async def granted(self, one, tokens=0):
        limiter = self.limiters.for_key(one)
        assert limiter is not None
        try:
            return await limiter.reserve(tokens)
        except RequestError:
            return None


@pytest.fixture
async def processes(tmp_path):
    """Two processes, whose clocks differ, and the wall clock."""
    wall = Clock()
    wall.now = 1e9
    both = [Process(tmp_path / "meters", wall, at) for at in (0.0, 500.0)]
    yield *both, wall
    for one in both:
        await one.store.aclose()


async def test_two_processes_share_a_minute(processes):
    """Whoever takes, takes from both; what comes back, comes back to both; their own clocks may differ."""
    one, two, wall = processes
    limited = key(rpm=3, tpm=100)
    first = await one.granted(limited, tokens=60)
    assert await two.granted(limited, tokens=30)
    assert not await one.granted(limited, tokens=30)
    first.settle(0, counts=False)
    assert await two.granted(limited, tokens=70)
    wall.now += 60
    one.clock.now += 60
    assert await one.granted(limited, tokens=100)
    assert one.limiters.for_key(limited).status()[-1][:3] == ("tokens", 100, 0)


async def test_it_outlives_its_processes(processes):
    """A restart, also of the machine, is not another minute; and a clock that was set back keeps nobody
    waiting."""
    one, two, wall = processes
    assert await one.granted(key(rpm=1))
    await one.store.aclose()
    two.clock.now = -1000.0
    assert not await two.granted(key(rpm=1))
    wall.now -= 1e6
    assert not await two.granted(key(rpm=1))
    two.clock.now += 59
    assert not await two.granted(key(rpm=1))
    wall.now += 1e6 + 60
    two.clock.now += 1
    assert await two.granted(key(rpm=1))


async def test_other_limits_begin_anew(processes):
    """A key whose limits were changed has all of them, as in one process."""
    one, two, _ = processes
    assert await one.granted(key(rpm=1))
    assert await two.granted(key(rpm=2))


async def test_many_keys(processes):
    """More keys than the file has places still have limits, and the file does not grow."""
    one, two, wall = processes
    for n in range(300):
        wall.now += 1
        assert await one.granted(key(n, rpm=1))
    assert not any([await two.granted(key(n, rpm=1)) for n in range(280, 300)])
    assert one.store.path.stat().st_size <= len(HEADER) + SLOTS * RECORD.size


async def test_the_longest_unused_place_is_taken_over(processes):
    """Where all places of a neighbourhood are taken, whoever was not seen for longest makes room."""
    one, two, wall = processes
    limits = {"requests": 1}
    subjects = [bytes(4) + bytes([n + 1]) * 28 for n in range(PROBE_SLOTS + 1)]
    for subject in subjects:
        wall.now += 1
        one.store.settle(subject, limits, {"requests": 1})
    for subject, left in ((subjects[-1], 0), (subjects[0], 1)):
        assert (await two.store.reserve(subject, limits, {})).available == {"requests": left}


async def test_a_record_is_not_found_across_two_others(processes):
    """Bytes that happen to be a subject's, in the middle of the table, are not its record."""
    one, two, _ = processes
    subject = bytes(4) + RECORD.pack(bytes(16), 1.0, 1.0, 1e9)[16:28] + bytes(16)
    one.store.settle(bytes(16), {"requests": 1.0, "tokens": 1.0}, {})
    assert (await two.store.reserve(subject, {"requests": 5}, {})).available == {"requests": 5}


UNITS = {"requests": 10, "usd": 2.5, "seconds": 600, "characters": 1e6, "pictures": 3}


async def test_units_of_any_name(processes):
    """Every unit of a subject has its level, all are granted together or none, and all processes share
    them."""
    one, two, _ = processes
    subject = bytes(range(32))
    assert (await one.store.reserve(subject, UNITS, {"requests": 1, "usd": 2.0, "pictures": 1})).granted
    grant = await two.store.reserve(subject, UNITS, {"requests": 1, "usd": 1.0})
    assert not grant.granted
    assert grant.available == {**UNITS, "requests": 9, "usd": 0.5, "pictures": 2}
    two.store.settle(subject, UNITS, {"usd": -1.5})
    assert (await one.store.reserve(subject, UNITS, {"usd": 2.0})).granted


async def test_a_file_of_before(tmp_path):
    """A record that 0.1.0's first file format holds is read: the format of requests and tokens has not
    changed."""
    wall, subject, path = Clock(), bytes(range(1, 33)), tmp_path / "meters"
    wall.now = 1e9
    begin = len(HEADER) + int.from_bytes(subject[:4], "little") % (SLOTS - PROBE_SLOTS) * RECORD.size
    table = bytearray(begin - len(HEADER)) + RECORD.pack(subject[:16], 3.0, 40.0, 1e9)
    path.write_bytes(b"qproxy meters 1\n" + table)
    one = Process(path, wall)
    grant = await one.store.reserve(subject, {"requests": 10, "tokens": 100}, {})
    assert grant.available == {"requests": 3, "tokens": 40}
    await one.store.aclose()


@pytest.mark.parametrize("content", [b"", b"x" * 5000, HEADER + b"\xff" * 100])
async def test_a_file_of_something_else(content, tmp_path):
    """It becomes a file of limits; what cannot be meant is no limit."""
    path = tmp_path / "meters"
    path.write_bytes(content)
    one = Process(path, Clock())
    assert await one.granted(key(rpm=1))
    assert not await one.granted(key(rpm=1))
    await one.store.aclose()


async def test_a_lock_that_is_not_given_back(processes):
    """Whoever cannot have it for a moment goes on with what it knows."""
    one, _, _ = processes
    assert await one.granted(key(rpm=2))
    with one.store.path.open() as other:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert await one.granted(key(rpm=2))
        assert not await one.granted(key(rpm=2))
    with one.store.path.open() as other:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)  # nobody holds it any more


async def test_no_place_for_a_file(tmp_path, caplog):
    """It is said once, and limits hold within the process."""
    (tmp_path / "file").write_text("")
    one = Process(tmp_path / "file" / "meters", Clock())
    assert await one.granted(key(rpm=1))
    assert not await one.granted(key(rpm=1))
    assert caplog.text.count("not shared with other workers") == 1


async def test_memory_is_bounded():
    """The least recently used subject is dropped, in memory and in a file's process alike."""
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


def test_a_race(tmp_path):
    """Three processes that take at the same time get together what there is, and what came back meanwhile."""
    command = [sys.executable, "-c", HAMMER, str(tmp_path / "meters")]
    racing = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    taken = sum(int(child.communicate(timeout=60)[0]) for child in racing)
    assert 100 <= taken <= 110  # 1.7 a second come back


async def test_two_servers(tmp_path):
    """A key's requests a minute are counted for all servers that have the file."""
    headers, setting = made(tmp_path, rpm=2)
    setting["rate_limits_file"] = str(tmp_path / "meters")
    async with world(**setting) as one, world(**setting) as two:
        found = [(await it.post(HELLO, headers=headers))[0] for it in (one, two, one, two)]
    assert found == [200, 200, 429, 429]
