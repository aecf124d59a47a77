"""Calls that are cancelled at each of their steps leave every store on the server usable and consistent."""

import trio

from qproxy.server.conversation_store import Conversation
from qproxy.server.response_runs import RecordedStream
from tests.backends.redis.link import Link
from tests.backends.redis.members import (
    open_conversations,
    open_grants,
    open_memory,
    open_response_runs,
    open_responses,
)
from tests.backends.redis.test_response_runs import events, items
from tests.backends.redis.test_responses import id_of, response, save_chain


class Stepper(trio.abc.Instrument):
    """Cancels a scope at a step of the current task."""

    def __init__(self, steps):
        self.scope = trio.CancelScope()
        self._left = steps
        self._task = trio.lowlevel.current_task()

    def before_task_step(self, task):
        if task is self._task:
            self._left -= 1
            if not self._left:
                self.scope.cancel()


async def cancel_at_each_step(call):
    """Make a call again and again, each time cancelled one step later, until it returns; return the steps."""
    for steps in range(1, 100):
        stepper = Stepper(steps)
        trio.lowlevel.add_instrument(stepper)
        try:
            with stepper.scope:
                await call()
        finally:
            trio.lowlevel.remove_instrument(stepper)
        await trio.testing.wait_all_tasks_blocked()
        if not stepper.scope.cancelled_caught:
            return steps
    raise AssertionError("it never returns")


def stored_bytes(server, pattern, prefixes):
    """Return what a hash counts, and the bytes that it has."""
    (key,) = server.execute("KEYS", pattern)
    fields = server.execute("HGETALL", key)
    values = dict(zip(fields[::2], fields[1::2], strict=True))
    return int(values[b"bytes"]), sum(len(v) for name, v in values.items() if prefixes(name))


async def test_responses(valkey, nursery, autojump_clock):
    """Saving, reading and deleting."""
    store = await open_responses(Link(valkey), nursery)
    await save_chain(store, [1, 2])

    async def use():
        await store.save(response(3, 2))
        await store.conversation("bob", id_of(3))
        await store.get("bob", id_of(2))
        await store.save(response(4, 3))
        await store.delete("bob", id_of(4))

    assert await cancel_at_each_step(use) >= 7
    assert len(await store.conversation("bob", id_of(3))) == 3
    counted, stored = stored_bytes(
        valkey, "q1:{r:*:*", lambda name: b":" not in name and name[:5] == b"resp_"
    )
    assert counted == stored


async def test_conversations(valkey, nursery, autojump_clock):
    """Creating, extending, reading, and deleting items."""
    store = await open_conversations(Link(valkey), nursery)

    async def use():
        await store.create(Conversation("c", "bob", 5, {}), items("a"))
        await store.append("bob", "c", items("b", "d"))
        await store.update("bob", "c", {"x": "y"})
        await store.delete_item("bob", "c", "a")
        assert await store.items("bob", "c") == items("b", "d")

    assert await cancel_at_each_step(use) >= 7
    counted, stored = stored_bytes(valkey, "q1:{c:*:c}", lambda name: name[:2] == b"i:")
    assert counted == stored


async def test_runs(valkey, nursery, autojump_clock):
    """Starting, extending, reading and ending."""
    store = await open_response_runs(Link(valkey), nursery)

    async def use():
        await store.start("bob", "r", events(0), 30.0)
        await store.append("bob", "r", 1, events(1, 2), 30.0)
        await store.read("bob", "r", -1)
        await store.finish("bob", "r")
        await store.save_streams([RecordedStream("bob", "s", events(0, 1))])

    assert await cancel_at_each_step(use) >= 7
    assert (await store.read("bob", "r", -1)).events == events(0, 1, 2)
    counted, stored = stored_bytes(valkey, "q1:{e:*:r}", lambda name: name[:2] == b"b:")
    assert counted == stored


async def test_what_may_be_lost(valkey, nursery, autojump_clock):
    """Small values, and grants."""
    memory = await open_memory(Link(valkey), nursery)
    grants = await open_grants(Link(valkey), nursery, lambda: 1e9)

    async def use():
        await memory.save(("a",), b"data")
        await memory.load([("a",), ("b",), ("c",)])
        await grants.add("key", b"a", 1e9 + 100)
        await grants.has("key", b"a")

    assert await cancel_at_each_step(use) >= 4
    assert await grants.has("key", b"a")
    assert await (await open_memory(Link(valkey), nursery)).load([("a",)]) == {("a",): b"data"}
