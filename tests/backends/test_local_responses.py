"""Stores of responses: the behavior of every store, and faults of SQLite's file."""

import sqlite3
from contextlib import asynccontextmanager, closing

import pytest
import trio

from qproxy.backends.local.responses import TOUCH_SECONDS, SqliteResponseStore
from qproxy.server.response_store import ResponseNotFound, ResponseStoreError, StoredResponse
from qproxy.wire.errors import RequestError


class WallClock:
    """A wall clock that a test sets."""

    def __init__(self):
        self.now = 1_700_000_000.0

    def __call__(self):
        return self.now


def stored(id, previous=None, owner="me", text="hi"):
    item = {"id": f"msg_{id}", "type": "message", "text": text}
    return StoredResponse(id, owner, previous, {"id": id, "output": [item]}, [{"id": f"in_{id}"}])


@asynccontextmanager
async def sqlite(path=None, **settings):
    defaults = {"max_age": 30 * 86400.0, "max_bytes": 1024**3, "timeout": 5.0}
    store = SqliteResponseStore(path, **(defaults | settings))
    try:
        yield store
    finally:
        await store.aclose()


@pytest.fixture(params=["memory", "file"])
def database_path(request, tmp_path):
    return None if request.param == "memory" else tmp_path / "data" / "responses.sqlite3"


async def test_a_response_is_saved_and_deleted(database_path):
    """A response is found unchanged, by its owner only, until it is deleted."""
    async with sqlite(database_path) as store:
        await store.save(stored("a"))
        assert await store.get("me", "a") == stored("a")
        for owner, id_ in (("you", "a"), ("me", "b"), ("", "a")):
            with pytest.raises(ResponseNotFound):
                await store.get(owner, id_)
            with pytest.raises(ResponseNotFound):
                await store.delete(owner, id_)
        await store.delete("me", "a")
        with pytest.raises(ResponseNotFound):
            await store.get("me", "a")
        assert (store.statistics().saved, store.statistics().failed) == (1, 0)


async def test_a_conversation_is_loaded_from_its_start(database_path):
    """A chain is the whole conversation, oldest first; a missing response is named."""
    async with sqlite(database_path) as store:
        for id_, previous in (("a", None), ("b", "a"), ("c", "b")):
            await store.save(stored(id_, previous))
        assert [one.id for one in await store.conversation("me", "c")] == ["a", "b", "c"]
        await store.delete("me", "a")
        with pytest.raises(ResponseNotFound) as caught:
            await store.conversation("me", "c")
        assert caught.value.id == "a"


async def test_unused_responses_expire(database_path):
    """A response unused for too long is not found; an active conversation keeps its start."""
    wall = WallClock()
    async with sqlite(database_path, wall_clock=wall, max_age=10 * TOUCH_SECONDS) as store:
        for id_, previous in (("a", None), ("b", "a"), ("z", None)):
            await store.save(stored(id_, previous))
        wall.now += 8 * TOUCH_SECONDS
        await store.conversation("me", "b")
        wall.now += 8 * TOUCH_SECONDS
        assert (await store.get("me", "a")).id == "a"
        with pytest.raises(ResponseNotFound):
            await store.get("me", "z")
        await store.save(stored("c"))
        assert store.statistics().discarded == 1


async def test_the_store_is_bounded_in_size(database_path):
    """The least recently used responses are dropped; one larger than the bound is not stored."""
    wall = WallClock()
    async with sqlite(database_path, wall_clock=wall, max_bytes=5000) as store:
        for number in range(10):
            wall.now += 1
            await store.save(stored(f"r{number}", text="x" * 900))
        found = []
        for number in range(10):
            try:
                found.append((await store.get("me", f"r{number}")).id)
            except ResponseNotFound:
                continue
        assert found == ["r6", "r7", "r8", "r9"] or found == ["r5", "r6", "r7", "r8", "r9"]
        assert store.statistics().discarded == 10 - len(found)
        with pytest.raises(ResponseStoreError, match="responses_max_bytes"):
            await store.save(stored("big", text="x" * 6000))
        assert store.statistics().failed == 1


async def test_rejects_a_conversation_that_is_too_large():
    """A chain larger than any request is rejected instead of read."""
    async with sqlite(max_chain=2 * 1024**2) as store:
        half = "x" * 1024**2
        await store.save(stored("a", text=half))
        await store.save(stored("b", "a", text=half))
        with pytest.raises(RequestError, match="larger than 2 MiB"):
            await store.conversation("me", "b")


async def test_responses_survive_a_restart(tmp_path):
    """A file outlives its store, serves two stores at once, and is private."""
    path = tmp_path / "responses.sqlite3"
    async with sqlite(path) as store:
        await store.save(stored("a"))
        async with sqlite(path) as other:
            await other.save(stored("b", "a"))
        assert len(await store.conversation("me", "b")) == 2
    async with sqlite(path) as store:
        assert (await store.get("me", "b")).previous_id == "a"
        assert {file.stat().st_mode & 0o777 for file in tmp_path.iterdir()} == {0o600}


async def test_concurrent_stores_lose_nothing(tmp_path):
    """Several stores of one file write at the same time without loss."""
    path = tmp_path / "responses.sqlite3"

    async def write(name):
        async with sqlite(path) as store:
            for number in range(10):
                await store.save(stored(f"{name}{number}"))

    async with trio.open_nursery() as nursery:
        for name in "abcd":
            nursery.start_soon(write, name)
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("SELECT count(*) FROM responses").fetchone() == (40,)


def newer(path):
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA user_version = 99")


BROKEN = {
    "a newer file": (newer, "newer qproxy"),
    "not a database": (lambda path: path.write_bytes(b"x" * 5000), "not a database"),
    "a directory": (lambda path: path.mkdir(), "directory"),
}


@pytest.mark.parametrize(("spoil", "message"), BROKEN.values(), ids=BROKEN)
async def test_an_unusable_file_raises_an_error(tmp_path, spoil, message):
    """An invalid file is not changed, and every operation raises an error."""
    path = tmp_path / "responses.sqlite3"
    spoil(path)
    async with sqlite(path) as store:
        for _ in range(2):
            with pytest.raises(ResponseStoreError, match=message):
                await store.get("me", "a")
        assert store.statistics().failed == 2


async def test_a_damaged_row_raises_an_error(tmp_path):
    """A row with invalid content is an error of the store, and other rows can be read."""
    path = tmp_path / "responses.sqlite3"
    async with sqlite(path) as store:
        await store.save(stored("a"))
        await store.save(stored("b"))
        with closing(sqlite3.connect(path)) as database, database:
            for body in (b"{", b"[]", b"{}", b"5"):
                database.execute("UPDATE responses SET body = ? WHERE id = 'a'", (body,))
                database.commit()
                with pytest.raises(ResponseStoreError):
                    await store.get("me", "a")
        assert (await store.get("me", "b")).id == "b"


async def test_a_lock_that_stays_held(tmp_path):
    """A writer that never finishes delays an operation by its time limit; readers do not wait."""
    path = tmp_path / "responses.sqlite3"
    async with sqlite(path, timeout=0.1) as store:
        await store.save(stored("a"))
        with closing(sqlite3.connect(path, isolation_level=None)) as database:
            database.execute("BEGIN IMMEDIATE")
            with pytest.raises(ResponseStoreError, match=r"locked|took more than"):
                await store.save(stored("b"))
            assert len(await store.conversation("me", "a")) == 1
        await store.save(stored("b"))


async def test_a_cancelled_caller_does_not_wait(tmp_path):
    """A cancelled caller returns at once, and the store stays valid."""
    async with sqlite(tmp_path / "responses.sqlite3") as store:
        await store.save(stored("a"))
        with trio.CancelScope() as scope:
            scope.cancel()
            await store.save(stored("b"))
        assert scope.cancelled_caught
        assert (await store.get("me", "a")).id == "a"
    assert "responses.sqlite3, 1 kept" in repr(store)
