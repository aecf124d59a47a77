"""Grants are shared by all processes until they expire, and not longer."""

import os
import sqlite3

import pytest
import trio

from qproxy.access.grants import GrantStoreError
from qproxy.backends.local import grants
from qproxy.backends.local.grants import SqliteGrants


class WallClock:
    """A wall clock that a test sets."""

    now = 1e9

    def __call__(self):
        return self.now


@pytest.fixture(params=["file", "memory"])
def stores(request, tmp_path):
    """Return two processes' views of one store, and their clock; in memory there is one view."""
    wall = WallClock()
    path = tmp_path / "home" / "access.sqlite3" if request.param == "file" else None
    first = SqliteGrants(path, wall_clock=wall)
    return first, SqliteGrants(path, wall_clock=wall) if path else first, wall


async def test_a_grant_holds_in_every_process_until_it_expires(stores):
    """A grant added in one process is found in another, and revoked in either."""
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


async def test_another_epoch_ends_earlier_grants(stores):
    """Grants of the kind from an earlier epoch are revoked permanently."""
    one, two, wall = stores
    await one.add("session", b"old", wall.now + 10, epoch="1")
    await one.add("session", b"new", wall.now + 10, epoch="2")
    await one.add("key", b"old", wall.now + 10)
    await two.retain("session", "2")
    assert [await one.has("session", digest) for digest in (b"old", b"new")] == [False, True]
    assert await one.has("key", b"old")


async def test_the_store_is_bounded(stores, monkeypatch):
    """Beyond the bound of a kind the grants that expire first are dropped, and expired ones are deleted."""
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


async def test_grants_survive_a_restart(tmp_path):
    """A process that starts later finds the grants; the file is readable by its owner only."""
    path = tmp_path / "access.sqlite3"
    first = SqliteGrants(path)
    await first.add("session", b"a", 1e12)
    await first.aclose()
    assert await SqliteGrants(path).has("session", b"a")
    assert os.stat(path).st_mode & 0o777 == 0o600


async def test_an_unusable_file_raises_an_error(tmp_path):
    """The error names the setting, and the store works again once the file is valid."""
    path = tmp_path / "access.sqlite3"
    path.write_bytes(b"no database at all" * 100)
    store = SqliteGrants(path)
    with pytest.raises(GrantStoreError, match="setting access_file"):
        await store.has("session", b"a")
    path.unlink()
    await store.add("session", b"a", 1e12)
    assert await store.has("session", b"a")


async def test_a_newer_file_is_not_changed(tmp_path):
    """A file of a newer version raises an error, and nothing is written to it."""
    path = tmp_path / "access.sqlite3"
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA user_version = 99")
    with pytest.raises(GrantStoreError, match="newer"):
        await SqliteGrants(path).add("session", b"a", 1e12)


async def test_concurrent_writers_lose_nothing(tmp_path):
    """Two processes that write concurrently lose no grant."""
    stores = [SqliteGrants(tmp_path / "access.sqlite3") for _ in range(2)]
    async with trio.open_nursery() as nursery:
        for number in range(40):
            nursery.start_soon(stores[number % 2].add, "key", b"%d" % number, 1e12)
    assert all([await stores[0].has("key", b"%d" % number) for number in range(40)])
