"""The file of keys' limits: several processes take from the same minute, and nothing that happens to it costs a request."""

import fcntl
import subprocess
import sys

import pytest

from qproxy.access.api_keys import ApiKey
from qproxy.access.rate_limits import KeyRateLimiters
from qproxy.backends.local.rate_limits import HEADER, PROBE_SLOTS, RECORD, SLOTS, FileRateLimits
from qproxy.limits.token_bucket import TokenBucket
from qproxy.wire.errors import RequestError
from tests.access.test_rate_limits import made
from tests.helpers import HELLO, world


class Wall:
    """A clock on the wall."""

    def __init__(self):
        self.now = 1e9

    def __call__(self):
        return self.now


def key(n=0, **limits):
    return ApiKey(f"key_{n}", f"{n:064x}", "bob", **limits)


@pytest.fixture
def shelves(tmp_path):
    """Two processes' views of one file, and their clock."""
    wall = Wall()
    both = [FileRateLimits(tmp_path / "meters", wall_clock=wall) for _ in range(2)]
    yield *both, wall
    for one in both:
        one.close()


def granted(meters, one, now=0.0, tokens=0):
    try:
        return meters.of(one, now).reserve(tokens, now)
    except RequestError:
        return None


def test_two_processes_share_a_minute(shelves):
    """Whoever takes, takes from both; what comes back, comes back to both; their own clocks may differ."""
    *files, wall = shelves
    one, two = map(KeyRateLimiters, files)
    limited = key(rpm=3, tpm=100)
    first = granted(one, limited, tokens=60)
    assert granted(two, limited, now=500.0, tokens=30)
    assert not granted(one, limited, tokens=30)
    first.settle(0, 0.0, counts=False)
    assert granted(two, limited, now=500.0, tokens=70)
    wall.now += 60
    assert granted(one, limited, now=60.0, tokens=100)
    meter = one.for_key(limited, 60.0)
    assert meter is not None
    assert meter.headers(60.0)["x-ratelimit-remaining-tokens"] == "0"


def test_it_outlives_its_processes(shelves):
    """A restart, also of the machine, is not another minute; and a clock that was set back keeps nobody waiting."""
    one, two, wall = shelves
    assert granted(KeyRateLimiters(one), key(rpm=1))
    one.close()
    assert not granted(KeyRateLimiters(two), key(rpm=1), now=-1000.0)
    wall.now -= 1e6
    assert not granted(KeyRateLimiters(two), key(rpm=1))
    assert not granted(KeyRateLimiters(two), key(rpm=1), now=59.0)
    wall.now += 1e6 + 60
    assert granted(KeyRateLimiters(two), key(rpm=1), now=60.0)


def test_other_limits_begin_anew(shelves):
    """A key whose limits were changed has all of them, as in one process."""
    one, two, _ = shelves
    assert granted(KeyRateLimiters(one), key(rpm=1))
    assert granted(KeyRateLimiters(two), key(rpm=2))


def test_many_keys(shelves):
    """More keys than the file has places still have limits, and the file does not grow."""
    one, two, wall = shelves
    mine, theirs = KeyRateLimiters(one), KeyRateLimiters(two)
    for n in range(300):
        wall.now += 1
        assert granted(mine, key(n, rpm=1))
    assert not any(granted(theirs, key(n, rpm=1)) for n in range(280, 300))
    assert one.path.stat().st_size <= len(HEADER) + SLOTS * RECORD.size


def test_the_longest_unused_place_is_taken_over(shelves):
    """Where all places of a neighbourhood are taken, whoever was not seen for longest makes room."""
    one, two, wall = shelves
    identities = [bytes(4) + bytes([n]) * 28 for n in range(PROBE_SLOTS + 1)]
    for identity in identities:
        wall.now += 1
        bucket = TokenBucket(1, 0.0)
        with one.held(identity, (bucket, None), 0.0):
            bucket.acquire(1, 0.0)
    for identity, left in ((identities[-1], 0), (identities[0], 1)):
        bucket = TokenBucket(1, 0.0)
        with two.held(identity, (bucket, None), 0.0):
            assert bucket.available(0.0) == left


@pytest.mark.parametrize("content", [b"", b"x" * 5000, HEADER + b"\xff" * 100])
def test_a_file_of_something_else(content, tmp_path):
    """It becomes a file of limits; what cannot be meant is no limit."""
    path = tmp_path / "meters"
    path.write_bytes(content)
    file = FileRateLimits(path)
    meters = KeyRateLimiters(file)
    assert granted(meters, key(rpm=1))
    assert not granted(meters, key(rpm=1))
    file.close()


def test_a_lock_that_is_not_given_back(shelves):
    """Whoever cannot have it for a moment goes on with what it knows."""
    one, two, _ = shelves
    mine = KeyRateLimiters(one)
    assert granted(mine, key(rpm=2))
    with two.held(b"x" * 32, (None, None), 0.0):
        assert granted(mine, key(rpm=2))
        assert not granted(mine, key(rpm=2))
    with one.path.open() as other:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)  # nobody holds it any more


def test_no_place_for_a_file(tmp_path, caplog):
    """It is said once, and limits hold within the process."""
    (tmp_path / "file").write_text("")
    meters = KeyRateLimiters(FileRateLimits(tmp_path / "file" / "meters"))
    assert granted(meters, key(rpm=1))
    assert not granted(meters, key(rpm=1))
    assert caplog.text.count("kept by this process alone") == 1


HAMMER = """
import sys, pathlib
from qproxy.bucket import Bucket
from qproxy.meter_file import MeterFile
file, bucket, granted = MeterFile(pathlib.Path(sys.argv[1])), Bucket(10_000, 0.0), 0
for _ in range(100):
    with file.held(bytes(32), (None, bucket), 0.0):
        if bucket.wait(100, 0.0) == 0:
            bucket.take(100, 0.0)
            granted += 1
print(granted)
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
    setting["meters_file"] = str(tmp_path / "meters")
    async with world(**setting) as one, world(**setting) as two:
        found = [(await it.post(HELLO, headers=headers))[0] for it in (one, two, one, two)]
    assert found == [200, 200, 429, 429]
