"""SQLite's stores of conversations and runs: limits of size and age."""

import random

import pytest

from qproxy.backends.local.conversations import SqliteConversations
from qproxy.backends.local.response_runs import BATCH_BYTES, EVENT_SECONDS, SqliteResponseRuns
from qproxy.backends.local.sqlite_store import TRIM_SECONDS
from qproxy.server.conversation_store import Conversation, ConversationNotFound
from qproxy.server.response_runs import RecordedStream, RunNotFound, RunState
from qproxy.wire.errors import RequestError
from tests.backends.test_local_responses import WallClock


def random_event(number, size):
    """Return an event that cannot be compressed."""
    return b"data: %d %s\n\n" % (number, random.Random(number).randbytes(size).replace(b"\n", b" "))


async def test_events_are_read_in_parts():
    """One read returns as much as a batch, and the next one continues with the next event."""
    events = [b"data: %d %s\n\n" % (number, b"x" * 1000) for number in range(3 * BATCH_BYTES // 1000)]
    store = SqliteResponseRuns(None, max_bytes=10**9, timeout=5.0)
    await store.save_streams([RecordedStream("me", "r", events)])
    found: list[bytes] = []
    reads, last = 0, False
    while not last:
        read = await store.read("me", "r", len(found) - 1)
        assert read.first == len(found)
        found += read.events
        reads, last = reads + 1, read.is_last
    assert found == events
    assert reads >= 3


async def test_the_oldest_events_of_a_run_are_deleted_first():
    """A run has at most its limit of events; a read of deleted ones begins with the first that is stored."""
    store = SqliteResponseRuns(None, max_bytes=10**9, timeout=5.0, max_run_bytes=5000)
    await store.start("me", "r", [random_event(0, 1000)], 30.0)
    for number in range(1, 20):
        await store.append("me", "r", number, [random_event(number, 1000)], 30.0)
    read = await store.read("me", "r", -1)
    assert read.next == 20
    assert 10 < read.first < 20
    assert read.events[-1] == random_event(19, 1000)
    assert len(read.events) == 20 - read.first


async def test_old_runs_are_deleted():
    """Events are deleted some time after their response ended or was lost, and never while it is active."""
    wall = WallClock()
    store = SqliteResponseRuns(None, max_bytes=10**9, timeout=5.0, wall_clock=wall)
    for id_ in ("ended", "lost", "active"):
        await store.start("me", id_, [b"data: 0\n\n"], 30.0)
    await store.finish("me", "ended")
    wall.now += EVENT_SECONDS + 60
    await store.append("me", "active", 1, [], 30.0)
    await store.save_streams([RecordedStream("me", "new", [b"data: 0\n\n"])])
    for id_ in ("ended", "lost"):
        with pytest.raises(RunNotFound):
            await store.read("me", id_, -1)
    assert (await store.read("me", "active", -1)).state is RunState.ACTIVE


async def test_ended_runs_are_bounded_in_size():
    """Beyond the limit the runs that ended first are deleted."""
    wall = WallClock()
    store = SqliteResponseRuns(None, max_bytes=5000, timeout=5.0, wall_clock=wall)
    for number in range(10):
        wall.now += TRIM_SECONDS
        await store.save_streams([RecordedStream("me", f"r{number}", [random_event(number, 1000)])])
    with pytest.raises(RunNotFound):
        await store.read("me", "r0", -1)
    assert (await store.read("me", "r9", -1)).events


async def test_unused_conversations_expire():
    """A conversation that is unused for too long is deleted; one in use stays."""
    wall = WallClock()
    store = SqliteConversations(None, max_age=10 * 3600.0, max_bytes=10**6, timeout=5.0, wall_clock=wall)
    for id_ in ("used", "unused"):
        await store.create(Conversation(id_, "me", 0, {}), [])
    wall.now += 8 * 3600
    await store.items("me", "used")
    wall.now += 8 * 3600
    assert await store.items("me", "used") == []
    with pytest.raises(ConversationNotFound):
        await store.get("me", "unused")


async def test_conversations_are_bounded_in_size():
    """One that would be too large is left as it was; the least recently used ones are discarded."""
    wall = WallClock()
    store = SqliteConversations(
        None, max_age=1e6, max_bytes=5000, timeout=5.0, max_conversation=2000, wall_clock=wall
    )
    item = {"id": "a", "text": "x" * 900}
    for number in range(10):
        wall.now += TRIM_SECONDS
        await store.create(Conversation(f"c{number}", "me", 0, {}), [item])
    with pytest.raises(RequestError, match="larger than 2000 bytes"):
        await store.append("me", "c9", [{**item, "id": "b"}, {**item, "id": "c"}])
    assert await store.items("me", "c9") == [item]
    with pytest.raises(ConversationNotFound):
        await store.get("me", "c0")
