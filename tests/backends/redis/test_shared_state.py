"""A server's limits on a real engine over real sockets: settings, start, end, and the check of them."""

import logging
import time
from dataclasses import replace

import pytest
import trio

from qproxy import cli
from qproxy import config as configuration
from qproxy.access.api_keys import ApiKeyStoreError, Quota
from qproxy.accounts.cooldowns import Cooldown
from qproxy.accounts.report import account_rows
from qproxy.accounts.shared_state import AccountStateDelta, StateStoreError
from qproxy.backends.api_keys import has_api_keys
from qproxy.backends.factory import open_backends, reopen_api_keys
from qproxy.backends.local import key_file
from qproxy.backends.shared_commands import (
    import_api_keys,
    with_account_states,
    with_api_keys,
    with_stores,
)
from qproxy.bootstrap.models import package_catalog
from qproxy.bootstrap.telemetry import build_pricing
from qproxy.config import Config
from qproxy.config.accounts import ConfigError
from qproxy.diagnostics.shared_state import check_shared_state
from qproxy.server.conversation_store import Conversation
from qproxy.server.response_store import StoredResponse
from tests.backends.redis.groups import until
from tests.backends.redis.members import KEY
from tests.backends.redis.server import Server
from tests.backends.redis.test_limits import REQUEST, key
from tests.helpers import accounts


def config_of(server, **fields):
    return Config(
        accounts=accounts("one"),
        shared_state=f"unix://{server.path}",
        shared_state_timeout=5.0,
        shared_state_connect_timeout=5.0,
        ledger="none",
        **fields,
    )


def backends_of(config):
    return open_backends(config, build_pricing(config, package_catalog()))


async def test_what_a_process_has_not_sent_is_sent_at_its_end(valkey, caplog):
    """The settings name the server; the log states what is shared and what is not."""
    caplog.set_level(logging.INFO)
    backends = backends_of(config_of(valkey))
    async with trio.open_nursery() as nursery:
        for task in backends.background:
            nursery.start_soon(task)
        limited = key(tpm=1000)
        reservation = await backends.usage_limiter.reserve(limited, REQUEST)
        reservation.settle({"tokens": 400}, attempted=True, answered=True)
        nursery.cancel_scope.cancel()
    (name,) = valkey.execute("KEYS", "q1:{k:*")
    assert float(valkey.execute("HGET", name, "l:tokens")) == pytest.approx(600, abs=50)
    text = " ".join(record.getMessage() for record in caplog.records)
    assert "API keys, their rate limits and budgets" in text
    assert "accounts' cooldowns, circuits and limits" in text
    assert text.partition("; local: ")[2].startswith("audit log")


def test_a_key_is_purged_on_the_server(valkey, tmp_path, monkeypatch, capsys):
    """`qproxy purge` deletes responses, conversations and runs of a key there, and of no other one."""
    monkeypatch.setenv("QPROXY_HOME", str(tmp_path))
    (tmp_path / "seal").write_text(KEY)
    (tmp_path / "qproxy.toml").write_text(
        f'ledger = "none"\nshared_state = "unix://{valkey.path}"\nshared_state_timeout = 5.0\n'
        f'shared_state_key_file = "{tmp_path}/seal"\n'
        "[[accounts]]\nname = 'one'\nkey = 'sk-x'\n"
    )
    config = configuration.load(path=str(tmp_path / "qproxy.toml"))

    async def create(keys):
        return {name: (await keys.create(name=name))[0].digest for name in ("bob", "amy")}

    owners = trio.run(with_api_keys, config, create)

    async def fill(stores):
        for owner in owners.values():
            await stores.responses.save(StoredResponse("r", owner, None, {"output": []}, []))
            await stores.conversations.create(Conversation("c", owner, 1, {}), [])
            await stores.response_runs.start(owner, "r", [], 30.0)

    trio.run(with_stores, config, fill)
    before = set(valkey.execute("KEYS", "q1:{[rce]:*}"))
    assert cli.main(["purge", "--key", "bob", "--config", str(tmp_path / "qproxy.toml")]) == 0
    assert "Deleted 1 responses" in capsys.readouterr().out
    left = set(valkey.execute("KEYS", "q1:{[rce]:*}"))
    assert len(before) == 12
    assert len(left) == 6

    async def read(stores):
        return await stores.responses.get(owners["amy"], "r"), await stores.conversations.get(
            owners["amy"], "c"
        )

    assert trio.run(with_stores, config, read)


async def test_what_a_process_cannot_send_is_sent_by_the_next_one(tmp_path):
    """A request that was granted while the server was away counts in its budget after the next start."""
    server = Server()
    server.kill()
    limited = key(rpm=1000, budgets=(Quota("month", 500, None),))
    folder = tmp_path / "outbox"
    config = config_of(server, shared_state_policy="open", shared_state_outbox=str(folder))
    config = replace(config, shared_state_timeout=0.25)
    for starts in (False, True):
        backends = backends_of(config)
        async with trio.open_nursery() as nursery:
            for task in backends.background:
                nursery.start_soon(task)
            if starts:
                assert len([*folder.iterdir()]) == 1
                server.start()
                await until(lambda: not [*folder.iterdir()])
            else:
                reservation = await backends.usage_limiter.reserve(limited, REQUEST)
                reservation.settle({"tokens": 10}, attempted=True, answered=True)
            nursery.cancel_scope.cancel()
    (name,) = server.execute("KEYS", "q1:{k:*")
    assert float(server.execute("HGET", name, "u:month:requests")) == 1
    server.close()


async def test_without_the_setting_nothing_changes():
    """No task runs, and no client exists."""
    config = Config(accounts=accounts("one"), ledger="none")
    assert backends_of(config).background == ()
    assert await check_shared_state(config, offline=False) == []


@pytest.mark.parametrize("url", ["http://me:topsecret@h", "redis+sentinel://me:topsecret@h", "redis://"])
def test_a_wrong_url_is_an_error_of_the_settings(url):
    """It names the setting, and does not repeat the URL."""
    config = Config(accounts=accounts("one"), shared_state=url, ledger="none")
    with pytest.raises(ConfigError, match=r"^shared_state: ") as error:
        backends_of(config)
    assert "topsecret" not in f"{error.value} {config!r}"
    if "topsecret" in url:
        assert "topsecret" in config.secrets()


async def test_the_check_reports_the_server(valkey):
    """What it finds has a state each; no append-only file, and no keys to encrypt with, are warnings."""
    found = await check_shared_state(config_of(valkey), offline=False)
    assert [(item.name, item.state) for item in found] == [
        ("server", "ok"),
        ("eviction", "ok"),
        ("persistence", "warning"),
        ("encryption", "ok"),
        ("rights", "ok"),
        ("clock", "ok"),
        ("responses", "warning"),
    ]
    assert "master" in found[0].message
    sealed = replace(config_of(valkey), shared_state_key_file="/run/secrets/seal")
    assert [item.name for item in await check_shared_state(sealed, offline=False)][-1] == "clock"
    assert [item.state for item in await check_shared_state(config_of(valkey), offline=True)] == ["skipped"]


def unreachable(folder):
    """Return the settings of a shared state that is not there."""
    return Config(
        accounts=accounts("one"),
        shared_state=f"unix://{folder}/none",
        shared_state_connect_timeout=0.1,
        ledger="none",
    )


async def test_the_check_of_a_server_that_is_not_there(tmp_path):
    """It fails with the reason."""
    config = unreachable(tmp_path)
    (found,) = await check_shared_state(config, offline=False)
    assert found.state == "failed"
    assert "No such file" in found.message


async def test_keys_are_shared_by_commands_servers_and_reloads(valkey, tmp_path):
    """A command's key is accepted by a server that starts later; a reload changes those of the settings."""
    config = config_of(valkey, keys_file=str(tmp_path / "keys.json"), host="0.0.0.0")
    config.check(has_api_keys)
    key, secret = await with_api_keys(config, lambda store: store.create(name="bob"))
    assert (tmp_path / "keys.shared.json").exists()
    backends = backends_of(replace(config, keys_file=str(tmp_path / "other" / "keys.json")))
    async with trio.open_nursery() as nursery:
        for task in backends.background:
            nursery.start_soon(task)
        for wait in backends.startup:
            await wait()
        assert backends.api_keys.authenticate(secret) == key
        renewed = reopen_api_keys(replace(config, api_keys=["sk-mine"]), backends.api_keys)
        assert renewed.authenticate(secret) == key
        assert renewed.authenticate("sk-mine").id == "api_keys[0]"
        nursery.cancel_scope.cancel()


async def test_key_files_are_imported(valkey, tmp_path):
    """The keys of a machine are accepted everywhere afterwards; repeating it changes nothing."""
    config = config_of(valkey, keys_file=str(tmp_path / "keys.json"))
    _, secret = key_file.create(tmp_path / "keys.json", name="bob")
    assert await import_api_keys(config) == (1, 1)
    assert await import_api_keys(config) == (0, 1)

    async def authenticate(store):
        return store.authenticate(secret)

    assert (await with_api_keys(config, authenticate)).name == "bob"
    with pytest.raises(ConfigError, match="must be set"):
        await import_api_keys(replace(config, shared_state=None))


async def test_commands_without_a_server_are_errors(tmp_path):
    """Keys cannot be listed or changed without the server; the message has the reason."""
    config = Config(
        shared_state=f"unix://{tmp_path}/none",
        shared_state_connect_timeout=0.01,
        keys_file=str(tmp_path / "keys.json"),
    )
    with pytest.raises(ApiKeyStoreError, match=r"^shared_state cannot be used: no connection"):
        await with_api_keys(config, lambda store: store.create(name="bob"))


async def test_two_servers_use_one_account(valkey):
    """A cooldown in one is a cooldown in the other and for the commands, which can end it for both."""
    config = config_of(valkey)
    (identity,) = [account.identity for account in config.accounts]
    one, two = [backends_of(config) for _ in range(2)]
    now = time.time()
    delta = AccountStateDelta("one", {"": Cooldown(now + 500, now, "quota")}, requests=3, quota=("gone",))
    idle = AccountStateDelta("one")
    async with trio.open_nursery() as nursery:
        for task in (*one.background, *two.background):
            nursery.start_soon(task)
        await one.account_state.exchange({identity: delta})
        with trio.fail_after(20):
            assert (await two.account_state.exchange({identity: idle}))[identity].quota == "gone"
        states = await with_account_states(config, lambda store: store.load([identity, "other"]))
        assert states is not None
        (row,) = account_rows(config.accounts, states, time.time())
        assert (row.state, row.requests, row.last_minute, row.quota) == ("cooling_down", 3, 3, "gone")
        woken = AccountStateDelta("one", woken_at=time.time() + 1, quota=(None,))
        await with_account_states(config, lambda store: store.exchange({identity: woken}))
        for backends in (one, two):
            state = (await backends.account_state.exchange({identity: idle}))[identity]
            assert (state.cooldowns, state.quota) == ({}, None)
            await backends.account_state.aclose()
        nursery.cancel_scope.cancel()


async def test_a_command_without_the_server_fails(tmp_path):
    """It names the setting, and reports no empty state."""
    config = unreachable(tmp_path)
    with pytest.raises(StateStoreError, match="shared_state cannot be used"):
        await with_account_states(config, lambda store: store.load(["id"]))
