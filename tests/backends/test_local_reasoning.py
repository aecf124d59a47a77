"""Ciphertexts of reasoning in memory: bounded in bytes and in time."""

import trio

from qproxy.backends.local.reasoning import ENTRY_BYTES, MemoryReasoning


def key(name):
    return ("client", "account", name)


async def test_the_least_recently_used_is_dropped_first():
    """The store keeps no more bytes than allowed, including its overhead per entry."""
    store = MemoryReasoning(seconds=60.0, max_bytes=2 * (ENTRY_BYTES + 10))
    for name in ("a", "b"):
        await store.save(key(name), "x" * 10)
    await store.load([key("a")])
    await store.save(key("c"), "x" * 10)
    assert set(await store.load([key("a"), key("b"), key("c")])) == {key("a"), key("c")}
    await store.save(key("big"), "x" * 2000)
    assert store.is_empty


async def test_it_expires_after_its_last_use(autojump_clock):
    """A use renews the expiry; then the entry is dropped, and a later save frees its bytes."""
    store = MemoryReasoning(seconds=60.0, max_bytes=10_000)
    await store.save(key("a"), "x")
    await trio.sleep(50)
    assert await store.load([key("a")])
    await trio.sleep(50)
    assert await store.load([key("a")])
    await trio.sleep(60)
    assert not await store.load([key("a")])
    await store.save(key("b"), "x")
    assert repr(store) == f"<MemoryReasoning 1 ciphertexts, {ENTRY_BYTES + 1} bytes>"
