"""Runs and conversations of two machines on a real server: bounded, read in steps, safe to send again."""

import hashlib

import pytest
import trio

from qproxy.backends.redis import conversations, response_runs
from qproxy.server.conversation_store import Conversation, ConversationNotFound
from qproxy.server.response_runs import RecordedStream, RunNotFound, RunSignal, RunState
from qproxy.server.response_store import ResponseStoreError
from qproxy.wire.errors import RequestError
from tests.backends.redis.link import Link
from tests.backends.redis.members import open_conversations, open_response_runs

LEASE = 30.0


def events(*numbers):
    return [b"data: %d %s\n\n" % (n, hashlib.sha256(b"%d" % n).hexdigest().encode()) for n in numbers]


def items(*ids):
    return [{"id": id, "text": f"secret {id}"} for id in ids]


@pytest.fixture
async def runs(valkey, nursery):
    """Return links and stores of runs of two machines."""
    links = [Link(valkey), Link(valkey)]
    return links, [await open_response_runs(link, nursery) for link in links]


@pytest.fixture
async def machines(valkey, nursery):
    """Return links and stores of conversations of two machines."""
    links = [Link(valkey), Link(valkey)]
    return links, [await open_conversations(link, nursery, max_age=86400) for link in links]


async def read_all(store, after=-1):
    """Return the numbers of all events after one, read in steps, and how many reads it took."""
    found, reads = [], 0
    while True:
        part = await store.read("bob", "r", after)
        reads += 1
        assert part.first == after + 1
        found += part.events
        after = part.first + len(part.events) - 1
        if part.is_last:
            return found, reads


async def test_many_events_are_read_in_steps(runs, monkeypatch, autojump_clock):
    """Batches and replies have a limited size; any number may be the first one that is read."""
    monkeypatch.setattr(response_runs, "BATCH_BYTES", 500)
    monkeypatch.setattr(response_runs, "READ_BYTES", 2000)
    _, (one, two) = runs
    await one.save_streams([RecordedStream("bob", "r", events(*range(100)))])
    found, reads = await read_all(two)
    assert found == events(*range(100))
    assert 2 < reads < 20
    for after in range(100):
        assert (await read_all(two, after))[0] == events(*range(after + 1, 100))


async def test_an_append_may_be_sent_again(runs, autojump_clock):
    """Events of the same numbers replace each other, also when more of them follow or others were stored."""
    _, (one, two) = runs
    await one.start("bob", "r", events(0), LEASE)
    for _ in range(2):
        assert await one.append("bob", "r", 1, events(1, 2), LEASE) is RunSignal.CONTINUE
    await one.append("bob", "r", 3, events(3), LEASE)
    await one.append("bob", "r", 1, events(1, 2, 3, 4), LEASE)
    assert (await read_all(two))[0] == events(0, 1, 2, 3, 4)
    assert (await two.read("bob", "r", -1)).next == 5


async def test_the_oldest_events_are_deleted_beyond_the_limit(runs, valkey, monkeypatch, autojump_clock):
    """The last batch stays; the reader gets the first event that is left, and its number."""
    monkeypatch.setattr(response_runs, "MAX_RUN_BYTES", 2000)
    _, (one, two) = runs
    await one.start("bob", "r", events(0), LEASE)
    for number in range(1, 100):
        await one.append("bob", "r", number, events(number), LEASE)
    part = await two.read("bob", "r", -1)
    assert part.first > 80
    assert part.events == events(*range(part.first, 100))
    (key,) = valkey.execute("KEYS", "q1:{e:*:r}")
    assert int(valkey.execute("HGET", key, "bytes")) <= 2000
    assert valkey.execute("HLEN", key) < 60
    await one.append("bob", "r", 100, [b"data: " + b"x" * 9000 + b"\n\n"], LEASE)
    assert (await two.read("bob", "r", 99)).first == 100


async def test_events_end_an_hour_after_their_response(runs, valkey, autojump_clock):
    """Every hash has an end, which a renewal and the end of the response move."""
    _, (one, _) = runs
    await one.start("bob", "r", [], LEASE)
    (key,) = valkey.execute("KEYS", "q1:{e:*:r}")
    assert 3600 < valkey.execute("TTL", key) <= 3630
    assert (await one.read("bob", "r", -1)).events == []
    await one.finish("bob", "r")
    assert 3590 < valkey.execute("TTL", key) <= 3600
    valkey.execute("DEL", key)
    assert await one.append("bob", "r", 0, events(0), LEASE) is RunSignal.STOP
    with pytest.raises(RunNotFound):
        await one.read("bob", "r", -1)
    assert await one.end_lost("bob", "r")


async def test_a_run_survives_a_server_that_is_away_for_a_while(runs, autojump_clock):
    """Appends fail meanwhile; then the same process goes on, if nobody has ended the run."""
    (link, _), (one, two) = runs
    await one.start("bob", "r", events(0), LEASE)
    await link.cut()
    await trio.testing.wait_all_tasks_blocked()
    with pytest.raises(ResponseStoreError, match=r"\(shared_state\)"):
        await one.append("bob", "r", 1, events(1), LEASE)
    await trio.sleep(LEASE + 1)
    assert (await two.read("bob", "r", -1)).state is RunState.LOST
    link.restore()
    await trio.sleep(5)
    assert await one.append("bob", "r", 1, events(1), LEASE) is RunSignal.CONTINUE
    assert (await two.read("bob", "r", 0)).events == events(1)


async def test_a_conversation_is_read_in_steps_and_sealed(machines, valkey, monkeypatch, autojump_clock):
    """The server sees no text, ids of items included; deleted items leave gaps that readers do not see."""
    monkeypatch.setattr(conversations, "STEP_BYTES", 1000)
    (_, link), (one, two) = machines
    names = [f"msg_{number}" for number in range(50)]
    await one.create(Conversation("c", "bob", 5, {"topic": "secret"}), items(*names[:10]))
    await two.append("bob", "c", items(*names[5:]))
    for name in names[::7]:
        await one.delete_item("bob", "c", name)
    before = link.commands
    assert await two.items("bob", "c") == items(*(name for name in names if name not in names[::7]))
    assert 3 < link.commands - before < 20
    (key,) = valkey.execute("KEYS", "q1:{c:*:c}")
    stored = b" ".join(valkey.execute("HGETALL", key))
    assert b"secret" not in stored
    assert b"msg_" not in stored
    assert 0 < valkey.execute("TTL", key) <= 86400
    bodies = [valkey.execute("HGET", key, name) for name in valkey.execute("HKEYS", key) if name[:2] == b"i:"]
    assert int(valkey.execute("HGET", key, "bytes")) == sum(map(len, bodies))


async def test_a_conversation_in_use_is_kept(machines, valkey, autojump_clock):
    """Reading renews its end, once an hour; a server without it has none."""
    _, (one, two) = machines
    await one.create(Conversation("c", "bob", 5, {}), items("a"))
    (key,) = valkey.execute("KEYS", "q1:{c:*:c}")
    valkey.execute("EXPIRE", key, 86400 - 3000)
    await two.items("bob", "c")
    assert valkey.execute("TTL", key) <= 86400 - 3000
    valkey.execute("EXPIRE", key, 5000)
    await two.items("bob", "c")
    assert valkey.execute("TTL", key) > 86000
    valkey.execute("DEL", key)
    with pytest.raises(ConversationNotFound):
        await two.items("bob", "c")


async def test_a_conversation_has_a_limit(machines, monkeypatch, autojump_clock):
    """What would exceed it is not stored at all."""
    monkeypatch.setattr(conversations, "MAX_CONVERSATION", 1000)
    _, (one, two) = machines
    await one.create(Conversation("c", "bob", 5, {}), items("a"))
    with pytest.raises(RequestError) as error:
        await two.append("bob", "c", items(*"bcdefgh"))
    assert error.value.code == "conversation_too_large"
    with pytest.raises(RequestError):
        await two.create(Conversation("d", "bob", 5, {}), items(*"bcdefgh"))
    assert await one.items("bob", "c") == items("a")
    with pytest.raises(ConversationNotFound):
        await one.get("bob", "d")


async def test_conversations_that_a_machine_stored_before_go_on(machines, autojump_clock):
    """They are found, extended and deleted where they are; the server knows nothing of them."""
    _, (one, two) = machines
    await one._local.create(Conversation("old", "bob", 5, {}), items("a"))
    await one.append("bob", "old", items("b"))
    assert await one.items("bob", "old") == items("a", "b")
    with pytest.raises(ConversationNotFound):
        await two.items("bob", "old")
    await one.create(Conversation("new", "bob", 5, {}), [])
    assert await one.delete_owner("bob") == 2


@pytest.mark.parametrize("id", ["", "a\ud800", "x" * 101, "a:b"])
async def test_an_id_that_no_conversation_has_costs_no_command(machines, id, autojump_clock):
    """Clients write ids, of items too: those may be any text."""
    (link, _), (one, _) = machines
    before = link.commands
    with pytest.raises(ConversationNotFound):
        await one.get("bob", id)
    assert link.commands == before
    await one.create(Conversation("c", "bob", 5, {}), items("\ud800"))
    assert (await one.items("bob", "c"))[0]["id"] == "\ud800"
