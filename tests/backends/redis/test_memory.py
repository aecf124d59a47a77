"""Hidden tool rounds of two processes on a real server: few commands, and nothing depends on it."""

import pytest
import trio

from qproxy.backends.local.tool_rounds import MemoryToolRounds
from qproxy.backends.redis import memory
from qproxy.backends.redis.sealing import Sealer
from qproxy.backends.redis.tool_rounds import RedisToolRounds
from tests.backends.redis.link import Link
from tests.backends.redis.members import open_memory

CALLS = [("call_1",), ("call_2", "call_3")]
HIDDEN = [{"role": "tool", "tool_call_id": "call_0", "content": "secret result"}]
OTHER_SEALER = Sealer(["MTIzNDU2Nzg5MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTI="])


def count_values(link):
    """Return the number of commands that were sent about values."""
    return sum(link.sent.count(b"\r\n%s\r\n" % name) for name in (b"SET", b"GETEX", b"EXPIRE"))


@pytest.fixture
async def processes(valkey, nursery):
    """Return links and stores of two processes."""
    links = [Link(valkey), Link(valkey)]
    stores = []
    for link in links:
        local = MemoryToolRounds(seconds=60.0)
        stores.append(RedisToolRounds(await open_memory(link, nursery), local))
    return links, stores


async def test_a_process_asks_once(processes, valkey, autojump_clock):
    """What was found is in its memory, what was not is not asked for again; the server sees no text."""
    (_, link), (one, two) = processes
    await one.save("place", CALLS[0], HIDDEN)
    for _ in range(10):
        assert dict(await two.load("place", CALLS)) == {CALLS[0]: HIDDEN}
    assert count_values(link) == 2
    (key,) = valkey.execute("KEYS", "q1:{m:*")
    assert b"secret" not in valkey.execute("GET", key)
    assert 0 < valkey.execute("TTL", key) <= 60


async def test_a_round_in_use_is_renewed_without_waiting(processes, valkey, autojump_clock):
    """A process that uses its own copy keeps the shared one, with a command in a quarter of the time."""
    (link, _), (one, two) = processes
    await one.save("place", CALLS[0], HIDDEN)
    (key,) = valkey.execute("KEYS", "q1:{m:*")
    valkey.execute("EXPIRE", key, 20)
    for _ in range(20):
        await trio.sleep(1)
        assert await one.load("place", CALLS[:1])
    assert count_values(link) == 2
    await trio.testing.wait_all_tasks_blocked()
    assert valkey.execute("TTL", key) == 60
    assert await two.load("place", CALLS[:1])


async def test_a_process_that_dropped_its_copy_asks_again(processes, autojump_clock):
    """Its memory is bounded, and the server still has the round."""
    _, (one, _) = processes
    await one.save("place", CALLS[0], HIDDEN)
    one._local._drop(("place", CALLS[0]))
    assert await one.load("place", CALLS)


async def test_what_is_saved_later_is_found(processes, autojump_clock):
    """A name that had no value is asked for again after a while, or as soon as this process saves one."""
    _, (one, two) = processes
    assert not await two.load("place", CALLS)
    await one.save("place", CALLS[0], HIDDEN)
    assert not await two.load("place", CALLS)
    await trio.sleep(60)
    await one.save("place", CALLS[0], HIDDEN)
    assert await two.load("place", CALLS)


async def test_a_large_round_stays_in_its_process(processes, valkey, monkeypatch, autojump_clock):
    """The next turn finds it there."""
    monkeypatch.setattr(memory, "MAX_VALUE", 100)
    _, (one, two) = processes
    await one.save("place", CALLS[0], HIDDEN)
    assert await one.load("place", CALLS)
    assert not await two.load("place", CALLS)
    assert valkey.execute("KEYS", "q1:{m:*") == []


async def test_without_the_server_a_process_has_its_own_rounds(processes, autojump_clock):
    """Nothing waits, or one timeout while it is silent; afterwards what others saved is found."""
    (link, other), (one, two) = processes
    await two.save("place", CALLS[1], HIDDEN)
    await link.cut()
    await trio.testing.wait_all_tasks_blocked()
    started = trio.current_time()
    await one.save("place", CALLS[0], HIDDEN)
    assert set(await one.load("place", CALLS)) == {CALLS[0]}
    assert trio.current_time() == started
    link.restore()
    await trio.sleep(5)
    assert set(await one.load("place", CALLS)) == set(CALLS)
    other.freeze()
    started = trio.current_time()
    assert not await two.load("elsewhere", CALLS)
    assert trio.current_time() - started == pytest.approx(0.25)


async def test_another_key_is_logged_once(processes, valkey, nursery, caplog, autojump_clock):
    """A process with other keys has nothing of what it cannot decrypt."""
    _, (one, _) = processes
    for calls in CALLS:
        await one.save("place", calls, HIDDEN)
    stranger = await open_memory(Link(valkey), nursery, sealer=OTHER_SEALER)
    assert not await RedisToolRounds(stranger, MemoryToolRounds(seconds=60.0)).load("place", CALLS)
    assert caplog.text.count("shared_state_key_file") == 1


async def test_the_names_that_are_remembered_are_bounded(processes, monkeypatch, autojump_clock):
    """The oldest is asked for again."""
    monkeypatch.setattr(memory, "MAX_NAMES", 2)
    (link, _), (one, _) = processes
    for number in (1, 2, 3, 3, 1):
        await one.load(f"{number}", CALLS[:1])
    assert count_values(link) == 4
