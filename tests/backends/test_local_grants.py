"""What was accepted is known to all processes until it ends, and never for longer."""

import os
import sqlite3

import pytest
import trio

from qproxy.access.grants import GrantStoreError
from qproxy.backends.local import grants
from qproxy.backends.local.grants import SqliteGrants


class Wall:
    """A clock on the wall."""

    now = 1e9

    def __call__(self):
        return self.now


@pytest.fixture(params=["file", "memory"])
def stores(request, tmp_path):
    """Two processes' views of one store, and their clock; in memory there is one."""
    wall = Wall()
    path = tmp_path / "home" / "access.sqlite3" if request.param == "file" else None
    first = SqliteGrants(path, wall_clock=wall)
    return first, SqliteGrants(path, wall_clock=wall) if path else first, wall


async def test_a_grant_is_known_to_everybody_until_it_ends(stores):
    """Added in one process, found in another, revoked in either."""
    one, two, wall = stores
    await one.add("session", b"a", wall.now + 10)
    assert await two.has("session", b"a")
    assert not await two.has("session", b"b")
    assert not await two.has("key", b"a")
    wall.now += 10
    assert not await one.has("session", b"a")
    await two.add("session", b"b", wall.now + 10)
    await two.revoke("session", b"b")
    assert not await one.has("session", b"b")
    await one.revoke("session", b"never granted")


async def test_another_epoch_ends_what_was_granted_before(stores):
    """Of its kind, and for good."""
    one, two, wall = stores
    await one.add("session", b"old", wall.now + 10, epoch="1")
    await one.add("session", b"new", wall.now + 10, epoch="2")
    await one.add("key", b"old", wall.now + 10)
    await two.retain("session", "2")
    assert [await one.has("session", digest) for digest in (b"old", b"new")] == [False, True]
    assert await one.has("key", b"old")


async def test_the_store_is_bounded(stores, monkeypatch):
    """Beyond so many of a kind those that end first go, and what has ended is not kept."""
    monkeypatch.setattr(grants, "MAX_ROWS", 3)
    one, _, wall = stores
    await one.add("other", b"x", wall.now + 1)
    for number in range(6):
        await one.add("key", b"%d" % number, wall.now + 100 + number)
    assert [await one.has("key", b"%d" % number) for number in range(6)] == [False] * 3 + [True] * 3
    assert await one.has("other", b"x")
    wall.now += 1000
    await one.add("key", b"last", wall.now + 1)
    rows = one._database.execute("SELECT count(*) FROM grants").fetchone()
    assert rows == (1,)


async def test_it_outlives_a_restart(tmp_path):
    """A process that begins later finds what is there; only its owner may read the file."""
    path = tmp_path / "access.sqlite3"
    first = SqliteGrants(path)
    await first.add("session", b"a", 1e12)
    await first.aclose()
    assert await SqliteGrants(path).has("session", b"a")
    assert os.stat(path).st_mode & 0o777 == 0o600


async def test_a_file_that_cannot_be_used(tmp_path):
    """It is an error that names the setting, and no loss once the file is sound again."""
    path = tmp_path / "access.sqlite3"
    path.write_bytes(b"no database at all" * 100)
    store = SqliteGrants(path)
    with pytest.raises(GrantStoreError, match="setting access_file"):
        await store.has("session", b"a")
    path.unlink()
    await store.add("session", b"a", 1e12)
    assert await store.has("session", b"a")


async def test_a_file_of_a_newer_version_is_left_alone(tmp_path):
    """Nothing is written to it."""
    path = tmp_path / "access.sqlite3"
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA user_version = 99")
    with pytest.raises(GrantStoreError, match="newer"):
        await SqliteGrants(path).add("session", b"a", 1e12)


async def test_many_at_once(tmp_path):
    """Two processes that write side by side lose nothing."""
    stores = [SqliteGrants(tmp_path / "access.sqlite3") for _ in range(2)]
    async with trio.open_nursery() as nursery:
        for number in range(40):
            nursery.start_soon(stores[number % 2].add, "key", b"%d" % number, 1e12)
    assert all([await stores[0].has("key", b"%d" % number) for number in range(40)])
