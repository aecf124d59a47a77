"""Lists of models on a real engine: one claim, its result for all, faults."""

import pytest
import trio

from qproxy.backends.redis import model_lists
from qproxy.backends.redis.model_lists import RedisModelLists
from qproxy.relay.model_lists import SharedModelList
from qproxy.wire.endpoints.models import Model
from tests.backends.redis.link import Link
from tests.backends.redis.members import open_client

FOUND = SharedModelList((Model("qwen-a", 5, "me"), Model("qwen-b")))


@pytest.mark.parametrize("found", [FOUND, SharedModelList(None), SharedModelList(None, is_failure=True)])
async def test_one_process_claims_and_the_others_get_its_list(found, valkey, nursery, autojump_clock):
    """They wait for it; the list has a lifetime."""
    stores = [RedisModelLists(await open_client(Link(valkey), nursery)) for _ in range(5)]
    results = []

    async def find(store):
        result = await store.get_or_claim("id", 10)
        results.append(result)
        if result is None:
            await trio.sleep(1)
            await store.save("id", found, 100)

    async with trio.open_nursery() as group:
        for store in stores:
            group.start_soon(find, store)
    assert results.count(None) == 1
    others = [result for result in results if result is not None]
    assert [result[0] for result in others] == [found] * 4
    assert all(90 < result[1] <= 100 for result in others)


async def test_a_claim_ends(valkey, nursery, autojump_clock):
    """A process that ends while it fetches stops the others for the time of its claim."""
    one, two = [RedisModelLists(await open_client(Link(valkey), nursery)) for _ in range(2)]
    assert await one.get_or_claim("id", 10) is None
    (key,) = valkey.execute("KEYS", "*:m")
    assert 9000 < valkey.execute("PTTL", key) <= 10000
    valkey.execute("DEL", key)
    assert await two.get_or_claim("id", 10) is None


async def test_without_the_server_each_process_asks(valkey, nursery, autojump_clock):
    """Nothing waits, and nothing fails."""
    link = Link(valkey)
    store = RedisModelLists(await open_client(link, nursery))
    await link.cut()
    await trio.sleep(0.1)
    before = trio.current_time()
    assert await store.get_or_claim("id", 10) is None
    await store.save("id", FOUND, 100)
    assert trio.current_time() == before


async def test_what_cannot_be_read_is_asked_for(valkey, nursery, autojump_clock, monkeypatch):
    """A damaged list is none, and a large one is not saved."""
    store = RedisModelLists(await open_client(Link(valkey), nursery))
    await store.save("id", FOUND, 100)
    (key,) = valkey.execute("KEYS", "*:m")
    for damage in (b"{", b"[1]", b"[false, [[]]]", b'[false, [["a", 1, 2, 3, 4, 5, 6, 7, 8]]]'):
        valkey.execute("SET", key, damage)
        assert await store.get_or_claim("id", 10) is None
    monkeypatch.setattr(model_lists, "MAX_BYTES", 10)
    valkey.execute("DEL", key)
    await store.save("id", FOUND, 100)
    assert valkey.execute("EXISTS", key) == 0
