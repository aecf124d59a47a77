"""The contracts of the stores of conversations and of response runs, for the fake and the local member;
further members join the tables.

Each test gets two views of one store, as two processes have them.
"""

from __future__ import annotations

import pytest

from qproxy.backends.local.conversations import SqliteConversations
from qproxy.backends.local.response_runs import SqliteResponseRuns
from qproxy.server.conversation_store import (
    Conversation,
    ConversationNotFound,
    ConversationStore,
    ItemNotFound,
)
from qproxy.server.response_runs import RecordedStream, ResponseRunStore, RunNotFound, RunSignal, RunState
from tests.backends.fake_responses import FakeConversations, FakeResponseRuns
from tests.backends.redis import members as engine
from tests.backends.redis.link import Link
from tests.backends.test_contracts import clock

__all__ = ["clock"]
LEASE = 30.0


@pytest.fixture(params=["fake", "local", "redis"])
async def conversations(request, tmp_path, clock, nursery):
    if request.param == "redis":
        links = [Link(request.getfixturevalue("valkey"), clock) for _ in range(2)]
        stores: list[ConversationStore] = [await engine.open_conversations(link, nursery) for link in links]
    elif request.param == "fake":
        stores = [FakeConversations()] * 2
    else:
        path = tmp_path / "responses.sqlite3"
        stores = [SqliteConversations(path, max_age=100.0, max_bytes=10**6, timeout=5.0) for _ in range(2)]
    yield stores
    for store in stores:
        await store.aclose()


@pytest.fixture(params=["fake", "local", "redis"])
async def runs(request, tmp_path, clock, nursery):
    if request.param == "redis":
        links = [Link(request.getfixturevalue("valkey"), clock) for _ in range(2)]
        stores: list[ResponseRunStore] = [await engine.open_response_runs(link, nursery) for link in links]
    elif request.param == "fake":
        stores = [FakeResponseRuns(clock)] * 2
    else:
        path = tmp_path / "responses.sqlite3"
        stores = [SqliteResponseRuns(path, max_bytes=10**6, timeout=5.0, wall_clock=clock) for _ in range(2)]
    yield stores
    for store in stores:
        await store.aclose()


def conversation(id: str, owner: str = "bob") -> Conversation:
    return Conversation(id, owner, 1_764_500_000, {"topic": id})


def items(*ids: str) -> list[dict[str, str]]:
    return [{"id": id, "type": "message", "text": f"text of {id}"} for id in ids]


def events(*numbers: int) -> list[bytes]:
    return [b'event: x\ndata: {"sequence_number":%d}\n\n' % number for number in numbers]


# Conversations


async def test_a_conversation_belongs_to_its_owner(conversations):
    """A conversation is found once it is created, with its items in order; other owners find nothing."""
    one, two = conversations
    await one.create(conversation("c"), items("a", "b"))
    await two.append("bob", "c", items("d", "c"))
    assert await two.get("bob", "c") == conversation("c")
    assert await one.items("bob", "c") == items("a", "b", "d", "c")
    for owner, id in (("amy", "c"), ("bob", "other"), ("", "c")):
        for attempt in (
            two.get(owner, id),
            two.items(owner, id),
            two.update(owner, id, {}),
            two.append(owner, id, items("x")),
            two.delete_item(owner, id, "a"),
            two.delete(owner, id),
        ):
            with pytest.raises(ConversationNotFound) as missing:
                await attempt
            assert missing.value.id == id
    assert await one.items("bob", "c") == items("a", "b", "d", "c")


async def test_a_conversation_has_an_item_once(conversations):
    """An item whose id is there already stays in its place, as it was."""
    one, two = conversations
    await one.create(conversation("c"), items("a", "b"))
    await two.append("bob", "c", [{"id": "a", "type": "message", "text": "another"}, *items("z")])
    assert await one.items("bob", "c") == items("a", "b", "z")


async def test_metadata_is_replaced(conversations):
    """An update replaces all metadata and nothing else."""
    one, two = conversations
    await one.create(conversation("c"), items("a"))
    updated = await two.update("bob", "c", {"mood": "good"})
    assert await one.get("bob", "c") == updated
    assert updated.metadata == {"mood": "good"}
    assert await one.items("bob", "c") == items("a")


async def test_items_and_conversations_are_deleted(conversations):
    """A deleted item is gone alone; a deleted conversation with all of its items."""
    one, two = conversations
    await one.create(conversation("c"), items("a", "b", "d"))
    await two.delete_item("bob", "c", "b")
    assert await one.items("bob", "c") == items("a", "d")
    with pytest.raises(ItemNotFound):
        await one.delete_item("bob", "c", "b")
    await two.delete("bob", "c")
    with pytest.raises(ConversationNotFound):
        await one.items("bob", "c")
    await one.create(conversation("c"), [])
    assert await two.items("bob", "c") == []


async def test_all_conversations_of_an_owner_are_deleted(conversations):
    """The number of deleted conversations is returned; those of other owners stay."""
    one, two = conversations
    for created in (conversation("a"), conversation("b"), conversation("c", owner="amy")):
        await one.create(created, items("x"))
    assert await two.delete_owner("bob") == 2
    assert await two.delete_owner("bob") == 0
    with pytest.raises(ConversationNotFound):
        await one.get("bob", "a")
    assert await one.items("amy", "c") == items("x")


# Runs


async def test_every_process_reads_a_run(runs):
    """The events of a run are read by their numbers, while it is active and after it has ended."""
    one, two = runs
    await one.start("bob", "r", events(0, 1), LEASE)
    read = await two.read("bob", "r", -1)
    assert (read.state, read.first, read.events) == (RunState.ACTIVE, 0, events(0, 1))
    assert await one.append("bob", "r", 2, events(2, 3, 4), LEASE) is RunSignal.CONTINUE
    read = await two.read("bob", "r", 2)
    assert (read.first, read.events, read.next, read.is_last) == (3, events(3, 4), 5, True)
    read = await two.read("bob", "r", 4)
    assert (read.first, read.events, read.state) == (5, [], RunState.ACTIVE)
    assert await one.finish("bob", "r")
    assert not await one.finish("bob", "r")
    read = await two.read("bob", "r", 3)
    assert (read.events, read.state) == (events(4), RunState.ENDED)
    for owner, id in (("amy", "r"), ("bob", "other")):
        with pytest.raises(RunNotFound):
            await two.read(owner, id, -1)


async def test_a_repeated_append_stores_events_once(runs):
    """An append whose result was lost may be repeated, with further events."""
    one, two = runs
    await one.start("bob", "r", events(0), LEASE)
    await one.append("bob", "r", 1, events(1, 2), LEASE)
    assert await one.append("bob", "r", 1, events(1, 2, 3), LEASE) is RunSignal.CONTINUE
    assert await one.append("bob", "r", 1, events(1, 2, 3), LEASE) is RunSignal.CONTINUE
    assert (await two.read("bob", "r", -1)).events == events(0, 1, 2, 3)


async def test_a_run_is_cancelled_from_anywhere(runs):
    """The run's process learns of a cancellation when it renews; a run that has ended is not active."""
    one, two = runs
    await one.start("bob", "r", events(0), LEASE)
    assert not await two.request_cancel("amy", "r")
    assert await one.append("bob", "r", 1, [], LEASE) is RunSignal.CONTINUE
    assert await two.request_cancel("bob", "r")
    assert await one.append("bob", "r", 1, [], LEASE) is RunSignal.CANCEL
    assert await one.append("bob", "r", 1, events(1), LEASE) is RunSignal.CANCEL
    assert await one.finish("bob", "r")
    assert not await two.request_cancel("bob", "r")
    assert (await two.read("bob", "r", 0)).events == events(1)


async def test_a_run_whose_lease_expires_is_lost(runs, clock):
    """Without a renewal a run is lost, and whoever notices ends it; its process must stop then."""
    one, two = runs
    await one.start("bob", "r", events(0), LEASE)
    for _ in range(3):
        clock.now += LEASE * 0.8
        await one.append("bob", "r", 1, [], LEASE)
    assert (await two.read("bob", "r", -1)).state is RunState.ACTIVE
    assert not await two.end_lost("bob", "r")
    clock.now += LEASE + 1
    assert (await two.read("bob", "r", -1)).state is RunState.LOST
    assert not await two.request_cancel("bob", "r")
    assert await two.end_lost("bob", "r")
    assert await two.end_lost("bob", "r")
    assert await one.append("bob", "r", 1, events(1), LEASE) is RunSignal.STOP
    assert not await one.finish("bob", "r")
    assert (await two.read("bob", "r", -1)).events == events(0)
    assert await two.end_lost("bob", "never started")


async def test_a_late_renewal_keeps_a_run_that_nobody_ended(runs, clock):
    """A process that was only slow goes on."""
    one, two = runs
    await one.start("bob", "r", events(0), LEASE)
    clock.now += LEASE + 1
    assert await one.append("bob", "r", 1, events(1), LEASE) is RunSignal.CONTINUE
    assert not await two.end_lost("bob", "r")


async def test_a_deleted_run_stops(runs):
    """A deleted run is not found, and its process has to stop; an owner's runs are deleted together."""
    one, two = runs
    for owner, id in (("bob", "r"), ("bob", "s"), ("amy", "t")):
        await one.start(owner, id, events(0), LEASE)
    await two.delete("bob", "r")
    await two.delete("bob", "r")
    with pytest.raises(RunNotFound):
        await one.read("bob", "r", -1)
    assert await one.append("bob", "r", 1, events(1), LEASE) is RunSignal.STOP
    assert not await one.finish("bob", "r")
    assert await two.delete_owner("bob") == 1
    assert (await two.read("amy", "t", -1)).events == events(0)


async def test_events_are_saved_in_one_step(runs):
    """The events of a response that ended for a connected client can be read like those of a run."""
    one, two = runs
    await one.save_streams(
        [RecordedStream("bob", "r", events(*range(50))), RecordedStream("amy", "r", events(0, 1))]
    )
    assert (await two.read("amy", "r", -1)).events == events(0, 1)
    read = await two.read("bob", "r", 46)
    assert (read.state, read.first, read.events) == (RunState.ENDED, 47, events(47, 48, 49))
    await one.save_streams([RecordedStream("bob", "r", events(0))])
    assert (await two.read("bob", "r", -1)).next == 1
