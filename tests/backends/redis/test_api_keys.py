"""API keys of two processes on a real server: changes, losses, copies, and what is rejected."""

from __future__ import annotations

import json
import socket
from functools import partial

import pytest
import trio
import trio.testing

from qproxy.access import api_keys
from qproxy.access.api_keys import ApiKeyStoreBusy, ApiKeyStoreError
from qproxy.backends.redis.api_keys import RedisApiKeys
from qproxy.backends.redis.key_table import API_KEYS, KeyTable
from qproxy.backends.redis.subscriber import Subscriber
from qproxy.wire.errors import AuthenticationError, InvalidKeyError, QproxyError
from tests.auth.helpers import in_place
from tests.backends.redis.link import Link
from tests.backends.redis.process import start_client
from tests.backends.redis.server import Exchange

KEY = "q1:{keys}"


async def start(server, nursery, path=None, *, link=None, **arguments):
    """Return the keys of a new process, which reads their version each second: a link has no messages."""
    client = await start_client(link or Link(server), nursery, [API_KEYS], connected=link is None)
    table = KeyTable(client, path, run=in_place, **arguments)
    nursery.start_soon(table.run, Subscriber(client))
    await table.wait_loaded()
    return RedisApiKeys(table, (), optional=False)


async def test_a_revocation_is_known_elsewhere_within_a_second(valkey, nursery, autojump_clock):
    """The other process reads the version each second."""
    one, two = await start(valkey, nursery), await start(valkey, nursery)
    key, secret = await one.create(name="bob", rpm=5)
    await trio.sleep(1.01)
    assert two.authenticate(secret) == key
    await one.revoke("bob")
    await trio.sleep(1.01)
    with pytest.raises(AuthenticationError, match="revoked"):
        two.authenticate(secret)


async def test_a_message_is_followed_at_once(valkey, nursery):
    """Each change is published, and a message makes the other process read all keys."""
    client = await start_client(Link(valkey), nursery, [API_KEYS])
    table, subscriber = KeyTable(client, None), Subscriber(client)
    nursery.start_soon(table.run, subscriber)
    await table.wait_loaded()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(valkey.path)
        listener = Exchange(sock)
        listener.execute("SUBSCRIBE", subscriber.channel("keys"))
        key, _ = await (await start(valkey, nursery)).create(name="bob")
        kind, channel, message = listener.read()
    assert (kind, message) == (b"message", b"1")
    assert not table.keys
    subscriber._receive([kind, channel, message])
    await trio.testing.wait_all_tasks_blocked()
    assert table.keys[0] == key


async def test_no_secret_is_on_the_server(valkey, nursery):
    """The record has a digest."""
    keys = await start(valkey, nursery)
    _, secret = await keys.create(name="bob")
    stored = b" ".join(valkey.execute("HGETALL", KEY))
    assert secret.encode() not in stored
    assert api_keys.hash_key(secret).encode() in stored


async def test_keys_are_required_while_there_are_none(valkey, nursery):
    """A table that was lost does not make the server open; a server without keys is a setting."""
    keys = await start(valkey, nursery)
    assert keys.required()
    with pytest.raises(InvalidKeyError):
        keys.authenticate("sk-x")
    assert not keys.with_settings((), optional=True).required()
    configured = keys.with_settings(api_keys.keys_from_settings(["sk-mine"]), optional=True)
    assert configured.required()
    assert configured.authenticate("sk-mine").id == "api_keys[0]"


async def test_what_a_server_has_lost_is_given_back(valkey, nursery, autojump_clock):
    """A server without its data has all keys again, and no revocation is lost."""
    one, two = await start(valkey, nursery), await start(valkey, nursery)
    _, old = await one.create(name="old")
    _, good = await one.create(name="good")
    before = dict(zip(*[iter(valkey.execute("HGETALL", KEY))] * 2, strict=True))
    await one.revoke("old")
    await trio.sleep(1)
    valkey.execute("DEL", KEY)
    for name, value in before.items():  # as of a moment before the revocation
        valkey.execute("HSET", KEY, name, value)
    await trio.sleep(2)
    third = await start(valkey, nursery)
    for keys in (one, two, third):
        assert keys.authenticate(good).name == "good"
        with pytest.raises(AuthenticationError, match="revoked"):
            keys.authenticate(old)
    valkey.execute("DEL", KEY)
    await trio.sleep(2)
    assert {key.name for key in third.list_keys()} == {"old", "good"}
    assert int(valkey.execute("HGET", KEY, "version")) > 3


async def test_a_process_starts_with_its_copy(valkey, nursery, autojump_clock, tmp_path):
    """Without the server the last copy is used; with the policy `closed`, or without a copy, it is a 503."""
    path = tmp_path / "keys.shared.json"
    _, secret = await (await start(valkey, nursery, path)).create(name="bob")
    assert path.stat().st_mode & 0o777 == 0o600
    assert secret not in path.read_text()
    away = Link(valkey)
    await away.cut()
    keys = await start(valkey, nursery, path, link=away)
    assert keys.authenticate(secret).name == "bob"
    with pytest.raises(InvalidKeyError):
        keys.authenticate("sk-other")
    for arguments in ({"path": path, "start_with_copy": False}, {}):
        closed = await start(valkey, nursery, link=away, **arguments)
        assert closed.required()
        with pytest.raises(QproxyError, match="not been read") as error:
            closed.authenticate(secret)
        assert (error.value.status, error.value.code) == (503, "shared_state_unavailable")
    away.restore()
    await trio.sleep(5)
    assert closed.authenticate(secret).name == "bob"


async def test_a_copy_of_another_installation_is_not_merged(valkey, nursery, autojump_clock, tmp_path):
    """A machine that is moved to another installation accepts that one's keys only."""
    path = tmp_path / "keys.shared.json"
    _, foreign = await (await start(valkey, nursery, path)).create(name="foreign")
    await trio.sleep(1)
    copy = json.loads(path.read_text())
    valkey.execute("DEL", KEY)
    path.write_text(json.dumps({**copy, "version": 99}))
    valkey.execute("HSET", KEY, "version", "7", "installation", "other")
    moved = await start(valkey, nursery, path)
    await trio.sleep(1)
    assert moved.list_keys() == ()
    with pytest.raises(InvalidKeyError):
        moved.authenticate(foreign)
    assert valkey.execute("HLEN", KEY) == 2


async def test_a_damaged_record_or_copy_disables_no_other_key(valkey, nursery, tmp_path):
    """A record that this version cannot read is left out; a copy that cannot be read counts as none."""
    path = tmp_path / "keys.shared.json"
    path.write_text("{")
    _, secret = await (await start(valkey, nursery, path)).create(name="bob")
    for number, record in enumerate(["{", "[]", '{"id": "x", "digest": "no"}', "null"]):
        valkey.execute("HSET", KEY, f"key_{number}", record)
    assert [key.name for key in (await start(valkey, nursery)).list_keys()] == ["bob"]
    assert (await start(valkey, nursery)).authenticate(secret)


async def test_concurrent_changes_are_all_made(valkey, nursery):
    """Of processes that change the keys at once, each one's change is made once."""
    stores = [await start(valkey, nursery) for _ in range(4)]
    async with trio.open_nursery() as changes:
        for number, store in enumerate(stores):
            changes.start_soon(partial(store.create, name=f"k{number}"))
    for store in stores:
        await store.table.read()
        assert {key.name for key in store.list_keys()} == {"k0", "k1", "k2", "k3"}
    assert int(valkey.execute("HGET", KEY, "version")) == 4


async def test_a_change_whose_reply_is_lost_is_made_once(valkey, nursery, autojump_clock):
    """It was executed, and its reply did not come: it is found after the next connection."""
    link = Link(valkey)
    keys = await start(valkey, nursery, link=link)

    async def lose_reply():
        link.freeze()
        await trio.sleep(0.2)
        await link.cut()
        await link.thaw()
        link.restore()

    nursery.start_soon(lose_reply)
    await trio.testing.wait_all_tasks_blocked()
    key, secret = await keys.create(name="bob")
    assert keys.authenticate(secret) == key
    assert valkey.execute("HGET", KEY, "version") == b"1"


async def test_a_change_without_a_server_is_an_error(valkey, nursery, autojump_clock):
    """It is one at once where nothing was sent, and one after a while where the outcome is unknown."""
    link = Link(valkey)
    keys = await start(valkey, nursery, link=link)
    link.freeze()
    with pytest.raises(ApiKeyStoreBusy, match="does not confirm"):
        await keys.create(name="bob")
    await link.cut()
    with pytest.raises(ApiKeyStoreError, match="cannot be used"):
        await keys.create(name="eve")


async def test_keys_of_files_are_merged(valkey, nursery):
    """Imports may be repeated, keep revocations, and reject a second active key of a name."""
    one = await start(valkey, nursery)
    first, _ = api_keys.generate(name="bob")
    second, _ = api_keys.generate(name="eve")
    assert await one.table.merge([first, second]) == 2
    assert await one.table.merge([first, second]) == 0
    (_, revoked), _ = api_keys.with_revoked([first, second], "eve")
    assert await one.table.merge([first, revoked]) == 1
    assert await one.table.merge([first, second]) == 0
    assert [key.status(0) for key in one.list_keys() if key.name == "eve"] == ["revoked"]
    other, _ = api_keys.generate(name="bob")
    with pytest.raises(ApiKeyStoreError, match="another secret"):
        await one.table.merge([other])
