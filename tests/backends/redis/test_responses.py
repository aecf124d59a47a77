"""Responses of two machines on a real server: bounded, sealed, by conversation, and while it is away."""

import hashlib
from itertools import pairwise

import pytest
import trio

from qproxy.backends.redis import responses
from qproxy.backends.redis.sealing import Sealer
from qproxy.server.response_store import ResponseNotFound, ResponseStoreError, StoredResponse
from qproxy.wire.errors import RequestError
from tests.backends.redis.link import Link
from tests.backends.redis.members import open_responses

ROOT = "00000001"
OTHER_SEALER = Sealer(["MTIzNDU2Nzg5MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTI="])


class Clock:
    """A clock that a test sets."""

    now = 1e9

    def __call__(self):
        return self.now


def id_of(number, root=ROOT):
    return f"resp_{root}{number:016x}"


def response(number, previous=None, *, root=ROOT, owner="bob", text="secret prompt"):
    before = None if previous is None else id_of(previous, root)
    content = {"id": id_of(number, root), "output": [f"out {number}"]}
    return StoredResponse(id_of(number, root), owner, before, content, [{"text": text, "n": number}])


async def save_chain(store, numbers, **fields):
    await store.save(response(numbers[0], **fields))
    for previous, number in pairwise(numbers):
        await store.save(response(number, previous, **fields))


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
async def machines(valkey, nursery, clock):
    """Return links and stores of two machines."""
    links = [Link(valkey, clock), Link(valkey, clock)]
    return links, [await open_responses(link, nursery) for link in links]


async def test_a_conversation_is_one_hash_and_one_command(machines, valkey, autojump_clock):
    """A chain of 100 responses is read at once from the other machine; the server sees no text of it."""
    (_, link), (one, two) = machines
    await save_chain(one, range(100))
    before = link.commands
    chain = await two.conversation("bob", id_of(99))
    assert [stored.id for stored in chain] == [id_of(number) for number in range(100)]
    assert chain[50] == response(50, 49)
    assert link.commands - before == 1
    (key,) = valkey.execute("KEYS", "q1:{r:*:*")
    assert b"secret" not in b"".join(valkey.execute("HGETALL", key))
    assert b"bob" not in key
    assert one.statistics().saved == 100


async def test_a_long_conversation_is_read_in_steps(machines, monkeypatch, autojump_clock):
    """Each reply has a bounded size."""
    monkeypatch.setattr(responses, "STEP_BYTES", 1000)
    (_, link), (one, two) = machines
    await save_chain(one, range(20))
    before = link.commands
    assert len(await two.conversation("bob", id_of(19))) == 20
    assert 3 < link.commands - before < 20


async def test_a_conversation_in_use_is_kept_and_the_rest_of_it_expires(
    machines, clock, valkey, monkeypatch, autojump_clock
):
    """What is continued or read as part of a conversation stays; a branch that nobody uses is deleted."""
    _, (one, two) = machines
    one._max_age = two._max_age = 86400.0
    await save_chain(one, [1, 2])
    await one.save(response(3, 1))
    for _ in range(3):
        clock.now += 43200
        await two.conversation("bob", id_of(2))
    with pytest.raises(ResponseNotFound):
        await two.get("bob", id_of(3))
    await one.save(response(4, 2))
    (key,) = valkey.execute("KEYS", "q1:{r:*:*")
    names = {name.decode() for name in valkey.execute("HKEYS", key)}
    assert names == {"bytes", "pruned", *(id_of(n) + suffix for n in (1, 2, 4) for suffix in ("", ":m"))}
    assert int(valkey.execute("HGET", key, "bytes")) == sum(
        len(valkey.execute("HGET", key, id_of(n))) for n in (1, 2, 4)
    )
    assert 0 < valkey.execute("TTL", key) <= 86400


async def test_too_large_responses_are_not_stored(valkey, nursery, clock, monkeypatch, autojump_clock):
    """A response, and a conversation, have limits, which the error names; nothing of them is stored."""
    store = await open_responses(Link(valkey, clock), nursery, max_bytes=1000)
    noise = "".join(hashlib.sha256(bytes([number])).hexdigest() for number in range(100))
    with pytest.raises(ResponseStoreError, match="shared_response_max_bytes"):
        await store.save(response(1, text=noise))
    monkeypatch.setattr(responses, "MAX_CONVERSATION", 500)
    await store.save(response(1))
    with pytest.raises(ResponseStoreError, match="the conversation is larger"):
        await save_chain(store, [1, 2, 3])
    assert store.statistics().failed == 2
    monkeypatch.setattr(responses, "MAX_CONVERSATION", 50)
    with pytest.raises(RequestError) as error:
        await store.conversation("bob", id_of(1))
    assert error.value.code == "context_length_exceeded"


async def test_responses_that_a_machine_stored_before_are_continued(machines, autojump_clock):
    """They are found in its own store, also before shared ones; deleting deletes them there."""
    _, (one, two) = machines
    old = StoredResponse("resp_old", "bob", None, {"id": "resp_old", "output": []}, ["old"])
    await one._local.save(old)
    new = StoredResponse(id_of(1), "bob", "resp_old", {"id": id_of(1), "output": []}, ["new"])
    await one.save(new)
    assert await one.conversation("bob", id_of(1)) == [old, new]
    assert await one.get("bob", "resp_old") == old
    with pytest.raises(ResponseNotFound) as missing:
        await two.conversation("bob", id_of(1))
    assert missing.value.id == "resp_old"
    await one.delete("bob", "resp_old")
    with pytest.raises(ResponseNotFound):
        await one.delete("bob", "resp_old")
    await one._local.save(old)
    assert await one.delete_owner("bob") == 2


async def test_a_server_that_is_away_is_an_error_and_not_a_missing_response(machines, autojump_clock):
    """What this machine stored itself is still found; a response saved before is there again afterwards."""
    (link, _), (one, _) = machines
    await one.save(response(1))
    await one._local.save(response(2, root="00000002"))
    await link.cut()
    await trio.testing.wait_all_tasks_blocked()
    assert (await one.get("bob", id_of(2, "00000002"))).id == id_of(2, "00000002")
    assert len(await one.conversation("bob", id_of(2, "00000002"))) == 1
    for call in (one.get, one.conversation, one.delete):
        with pytest.raises(ResponseStoreError, match=r"\(shared_state\)"):
            await call("bob", id_of(1))
    with pytest.raises(ResponseStoreError):
        await one.save(response(3))
    link.restore()
    await trio.sleep(5)
    assert (await one.get("bob", id_of(1))).id == id_of(1)


async def test_a_frozen_server_costs_each_call_its_timeout(machines, autojump_clock):
    """A save without a reply fails, and may have been done."""
    (link, _), (one, two) = machines
    await one.save(response(1))
    link.freeze()
    started = trio.current_time()
    with pytest.raises(ResponseStoreError, match="shared_state_timeout"):
        await one.save(response(2, 1))
    assert trio.current_time() - started < 0.3
    await link.thaw()
    await one.save(response(2, 1))
    assert len(await two.conversation("bob", id_of(2))) == 2


async def test_another_key_or_place_does_not_open(valkey, nursery, clock, machines, autojump_clock):
    """A machine without the key, and a body that somebody moved, are errors that name the reason."""
    _, (one, _) = machines
    await save_chain(one, [1, 2])
    stranger = await open_responses(Link(valkey, clock), nursery, sealer=OTHER_SEALER)
    with pytest.raises(ResponseStoreError, match="shared_state_key_file"):
        await stranger.get("bob", id_of(1))
    (key,) = valkey.execute("KEYS", "q1:{r:*:*")
    valkey.execute("HSET", key, id_of(2), valkey.execute("HGET", key, id_of(1)))
    with pytest.raises(ResponseStoreError, match="another record"):
        await one.get("bob", id_of(2))
    await save_chain(one, [1, 2])
    valkey.execute("HSET", key, f"{id_of(2)}:m", b"1000000000 10 ")
    with pytest.raises(ResponseStoreError, match="order of the responses"):
        await one.get("bob", id_of(2))


@pytest.mark.parametrize("id", ["", "a\ud800", "x" * 101, "a:m", "bytes\n", "é"])
async def test_an_id_that_no_response_has_costs_no_command(machines, id, autojump_clock):
    """Clients write ids."""
    (link, _), (one, _) = machines
    before = link.commands
    with pytest.raises(ResponseNotFound):
        await one.get("bob", id)
    assert link.commands == before
