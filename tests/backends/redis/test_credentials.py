"""Tokens of machines that share an account: no refresh token is sent twice, whatever fails when."""

from __future__ import annotations

import socket

import pytest
import trio
import trio.testing
from cryptography.fernet import Fernet

from qproxy.auth.credential_store import LockTimeout, RefreshTokenUsed, StorageError
from qproxy.backends.redis.sealing import Sealer
from qproxy.backends.redis.subscriber import Changes
from qproxy.emulator.identity import FAULTS
from qproxy.wire.errors import UpstreamError
from tests.auth.helpers import signed
from tests.backends.redis.machines import LIFETIME, MARGIN, Machine, first_tokens
from tests.backends.redis.server import Exchange, Server

SOON = 20.0
"""Seconds until the first tokens of a test are refreshed."""
EXPIRED = MARGIN + 60.0
"""Seconds after which they would have expired."""


async def start(setup, server, folder, *names):
    """Return connected machines whose account has logged in on the first one, and is refreshed soon."""
    machines = [Machine(setup, server, folder / name) for name in names]
    for machine in machines:
        await setup.nursery.start(machine.run)
    await trio.sleep(6)
    await machines[0].store.save(first_tokens(setup, MARGIN + SOON))
    await trio.sleep(6)
    assert len({machine.token for machine in machines}) == 1
    assert machines[0].token is not None
    return machines


def assert_one_login(setup, *machines):
    """Assert that no token was sent twice, and that all machines have the newest one."""
    identity = setup.emulator.identity
    assert identity.reused_count == 0
    (token,) = {machine.token for machine in machines}
    assert token is not None
    assert identity.accepts_token(token)


async def wait_exchanges(machines, count):
    """Wait until so many exchanges have begun."""
    while sum(machine.life.steps.count("exchange") for machine in machines) < count:  # noqa: ASYNC110
        await trio.sleep(0.5)


async def test_each_token_is_refreshed_by_one_machine(valkey, tmp_path, autojump_clock):
    """Machines whose tokens are due at one moment refresh once; all have the newest tokens, on disk, too."""
    async with signed(tmp_path) as setup:
        machines = await start(setup, valkey, tmp_path, "a", "b", "c")
        for number in range(3):
            await trio.sleep(SOON if not number else LIFETIME - MARGIN + 10)
            assert setup.emulator.identity.issued_count == number + 2
            assert_one_login(setup, *machines)
        content = {machine.file.path.read_bytes() for machine in machines}
        assert len(content) == 1
        stored = b" ".join(valkey.execute("HGETALL", machines[0].store._key))
        for text in (*content, stored):
            assert b"emu-" not in text


async def refresh_with_a_kill(valkey, folder, kill_at):
    """Kill one of two machines at a step of its refresh; return all its steps, and how often a token was sent
    twice."""
    valkey.execute("FLUSHALL")
    async with signed(folder) as setup:
        one, two = await start(setup, valkey, folder, "a", "b")
        two.source.refresher._token_state.not_before = trio.current_time() + SOON + 3
        await trio.sleep(SOON - 10)
        await one.wait_step("read", len(one.life.steps))
        begin = len(one.life.steps)
        if kill_at is not None:
            one.life.kill_at = (begin + kill_at[0], kill_at[1])
        await trio.sleep(EXPIRED)
        steps = one.life.steps[begin:]
        identity = setup.emulator.identity
        if not identity.reused_count:
            assert_one_login(setup, two)
        else:
            assert two.source.status().state == "login_needed"
        return steps, identity.reused_count


async def test_a_machine_killed_at_any_step_costs_no_login(valkey, tmp_path, autojump_clock):
    """Only if it had sent the token and published no answer is it sent again, once, by the other one."""
    steps, reused = await refresh_with_a_kill(valkey, tmp_path / "none", None)
    assert not reused
    sent_twice = {}
    for number in range(steps.index("acquire"), steps.index("release") + 2):
        for when in ("before", "after"):
            killed, reused = await refresh_with_a_kill(valkey, tmp_path / f"{number}{when}", (number, when))
            assert killed == steps[:number]
            if reused:
                sent_twice[killed[-1], when] = reused
    assert sent_twice == {("exchange", "after"): 1, ("write", "before"): 1}


@pytest.mark.parametrize("persistence", ["yes", "no"])
async def test_a_server_that_is_killed_costs_no_login(persistence, tmp_path, autojump_clock):
    """Killed while a token is exchanged, or just after: with an append-only file and without one."""
    server = Server("--appendonly", persistence)
    try:
        async with signed(tmp_path) as setup:
            machines = await start(setup, server, tmp_path, "a", "b", "c")
            for number in range(4):
                await wait_exchanges(machines, number + 1)
                await trio.sleep(number * 0.9)
                server.kill()
                await trio.sleep(3)
                server.start()
                await trio.sleep(30)
                assert setup.emulator.identity.issued_count == number + 2
                assert_one_login(setup, *machines)
    finally:
        server.close()


async def test_a_server_that_lost_the_last_refresh_gets_it_back_first(tmp_path, autojump_clock):
    """A machine that has not read the newest tokens waits until the one that has them is connected again."""
    server = Server()
    try:
        async with signed(tmp_path) as setup:
            one, two = await start(setup, server, tmp_path, "a", "b")
            key = one.store._key
            before = server.execute("HGETALL", key)
            await two.link.cut()
            await trio.sleep(SOON)
            assert setup.emulator.identity.issued_count == 2
            await one.link.cut()
            server.kill()
            server.start()
            server.execute("HSET", key, *before)
            await trio.sleep(MARGIN - 40)
            two.link.restore()
            await two.client.wait_connected()
            two.source.refresher._token_state.not_before = 0.0
            two.source.reload()
            one.link.restore()
            await trio.sleep(60)
            assert_one_login(setup, one, two)
    finally:
        server.close()


async def test_a_server_that_forgets_an_exchange_learns_of_it_again(tmp_path, autojump_clock):
    """While the identity server takes its time no other machine sends the token to it."""
    server = Server()
    try:
        async with signed(tmp_path) as setup:
            machines = await start(setup, server, tmp_path, "a", "b")
            for machine in machines:
                machine.identity.delay = 25.0
            await wait_exchanges(machines, 1)
            server.kill()
            server.start()
            await trio.sleep(60)
            assert setup.emulator.identity.issued_count == 2
            assert_one_login(setup, *machines)
    finally:
        server.close()


async def test_a_machine_that_is_cut_off_refreshes_nothing(valkey, tmp_path, autojump_clock):
    """The others go on; its token is valid until it expires, and the newest one is used after the return."""
    async with signed(tmp_path) as setup:
        one, two = await start(setup, valkey, tmp_path, "a", "b")
        await one.link.cut()
        await trio.sleep(EXPIRED)
        assert one.source.status().state == "expired"
        with pytest.raises(UpstreamError, match="no token is refreshed without it") as error:
            await one.source.credential()
        assert error.value.retry_after
        assert_one_login(setup, two)
        one.link.restore()
        await trio.sleep(10)
        assert_one_login(setup, one, two)


async def test_a_server_that_is_frozen_delays_the_refresh(valkey, tmp_path, autojump_clock):
    """What it executes late does no harm: leases end, and a send that was recorded late did not happen."""
    async with signed(tmp_path) as setup:
        one, two = await start(setup, valkey, tmp_path, "a", "b")
        await trio.sleep(SOON - 8)
        for machine in (one, two):
            machine.link.freeze()
        await trio.sleep(30)
        for machine in (one, two):
            await machine.link.thaw()
        await trio.sleep(EXPIRED)
        assert_one_login(setup, one, two)


async def test_an_answer_that_cannot_be_published_is_published_later(valkey, tmp_path, autojump_clock):
    """It is on the disk meanwhile, and also a new process of the machine gives it to the server."""
    async with signed(tmp_path) as setup:
        one, two = await start(setup, valkey, tmp_path, "a", "b")
        two.source.refresher._token_state.not_before = trio.current_time() + SOON + 10
        await one.wait_step("exchange", 0)
        await one.link.cut()
        await trio.sleep(20)
        assert setup.emulator.identity.accepts_token(one.token)
        assert two.token != one.token
        one.stop()
        again = Machine(setup, valkey, tmp_path / "a")
        await setup.nursery.start(again.run)
        await trio.sleep(10)
        assert_one_login(setup, again, two)
        await trio.sleep(EXPIRED)
        assert_one_login(setup, again, two)


async def test_a_login_replaces_a_refresh_in_progress(valkey, tmp_path, autojump_clock):
    """The tokens of a new login are the newest ones, and those of the old one are dropped."""
    async with signed(tmp_path) as setup:
        one, two = await start(setup, valkey, tmp_path, "a", "b")
        new = first_tokens(setup)
        generation = two.store._newest.generation
        two.source.refresher._token_state.not_before = trio.current_time() + SOON + 10
        await one.wait_step("exchange", 0)
        login = two.store.seal(new, generation + 1)
        assert await two.store.publish(login)
        await trio.sleep(20)
        assert {one.token, two.token} == {new.access_token}


async def test_a_logout_is_one_everywhere(valkey, tmp_path, autojump_clock):
    """No machine gives back what was removed, also to a server without data."""
    async with signed(tmp_path) as setup:
        one, two = await start(setup, valkey, tmp_path, "a", "b")
        assert await two.store.remove()
        await trio.sleep(6)
        assert one.source.status().state == two.source.status().state == "login_needed"
        valkey.execute("FLUSHALL")
        await trio.sleep(10)
        again = Machine(setup, valkey, tmp_path / "a")
        await setup.nursery.start(again.run)
        await trio.sleep(10)
        assert {one.token, two.token, again.token} == {None}
        await one.store.save(first_tokens(setup))
        await trio.sleep(6)
        assert_one_login(setup, one, two, again)


async def test_tokens_of_another_key_are_errors_with_words(valkey, tmp_path, autojump_clock):
    """A machine with another key file neither uses nor replaces them, and reports why."""
    async with signed(tmp_path) as setup:
        one, _ = await start(setup, valkey, tmp_path, "a", "b")
        stored = valkey.execute("HGET", one.store._key, "sealed")
        other = Machine(setup, valkey, tmp_path / "c", sealer=Sealer([Fernet.generate_key().decode()]))
        await setup.nursery.start(other.run)
        await trio.sleep(6)
        status = other.source.status()
        assert status.state == "login_needed"
        assert "no key of shared_state_key_file opens it" in status.message
        with pytest.raises(StorageError, match="no key of shared_state_key_file"):
            await other.store.save(first_tokens(setup))
        assert valkey.execute("HGET", one.store._key, "sealed") == stored


async def test_a_copy_of_another_installation_is_not_published(valkey, tmp_path, autojump_clock):
    """A copy that does not open is ignored, whatever its generation is."""
    async with signed(tmp_path) as setup:
        one, two = await start(setup, valkey, tmp_path, "a", "b")
        two.stop()
        content = one.file.path.read_text()
        for text in (content.replace('"generation":1', '"generation":99'), "{", "[]", '{"generation":9}'):
            two.file.path.write_text(text)
            moved = Machine(setup, valkey, tmp_path / "b")
            await setup.nursery.start(moved.run)
            await trio.sleep(6)
            assert moved.token == one.token
            moved.stop()
        assert int(valkey.execute("HGET", one.store._key, "generation")) < 9


async def test_without_a_disk_tokens_are_refreshed_when_urgent(valkey, tmp_path, autojump_clock):
    """The refresh waits for the disk until the token is about to expire; the server has the new ones then."""
    async with signed(tmp_path) as setup:
        (one,) = await start(setup, valkey, tmp_path, "a")
        one.disk_error = StorageError("the disk is full.")
        await trio.sleep(SOON + 20)
        assert one.source.status().state == "not_saved"
        assert setup.emulator.identity.issued_count == 1
        await trio.sleep(EXPIRED)
        assert setup.emulator.identity.issued_count == 2
        assert_one_login(setup, one)


async def test_a_send_without_an_outcome_is_repeated_once(valkey, tmp_path, autojump_clock):
    """The next machine waits until the token in use is about to expire; after two sends there is no third."""
    async with signed(tmp_path) as setup:
        one, two = await start(setup, valkey, tmp_path, "a", "b")
        for machine in (one, two):
            machine.source.refresher._token_state.not_before = trio.current_time() + 1000

        token = (await one.store.load()).refresh_token

        async def send_and_die(store, urgent):
            async with store.exclusive():
                await store.prepare_write(token, urgent=urgent)

        await send_and_die(one.store, False)
        with pytest.raises(StorageError, match="sent again when the current token is about to expire"):
            await send_and_die(two.store, False)
        await send_and_die(two.store, True)
        for store in (one.store, two.store):
            with pytest.raises(RefreshTokenUsed, match="sent twice"):
                await send_and_die(store, True)


async def test_only_the_newest_token_is_sent(valkey, tmp_path, autojump_clock):
    """A refresh token that a process still has in memory is not sent where the server has another one."""
    async with signed(tmp_path) as setup:
        (one,) = await start(setup, valkey, tmp_path, "a")
        one.source.refresher._token_state.not_before = trio.current_time() + 1000
        async with one.store.exclusive():
            with pytest.raises(LockTimeout, match="Another process has refreshed"):
                await one.store.prepare_write("r1", urgent=True)


async def test_tokens_in_memory_only_are_reported_until_the_server_has_them(valkey, tmp_path, autojump_clock):
    """Neither the disk nor the server took them."""
    async with signed(tmp_path) as setup:
        (one,) = await start(setup, valkey, tmp_path, "a")
        one.disk_error = StorageError("the disk is full.")
        await one.wait_step("exchange", 0)
        await one.link.cut()
        await trio.sleep(30)
        status = one.source.status()
        assert (status.state, setup.emulator.identity.issued_count) == ("not_saved", 2)
        assert setup.emulator.identity.accepts_token(one.token)
        one.link.restore()
        await trio.sleep(10)
        assert one.source.status().state == "ready"
        again = Machine(setup, valkey, tmp_path / "b")
        await setup.nursery.start(again.run)
        await trio.sleep(6)
        assert_one_login(setup, one, again)


async def test_a_lease_that_has_ended_sends_nothing(valkey, tmp_path, autojump_clock):
    """A machine that slept between the lease and the token finds out in the last step before it is sent."""
    async with signed(tmp_path) as setup:
        one, two = await start(setup, valkey, tmp_path, "a", "b")
        for machine in (one, two):
            machine.source.refresher._token_state.not_before = trio.current_time() + 1000
        token = (await one.store.load()).refresh_token
        async with one.store.exclusive():
            await trio.sleep(60)
            with pytest.raises(LockTimeout, match="lease"):  # what is left is not enough for an exchange
                await one.store.prepare_write(token, urgent=True)
            await trio.sleep(40)
            async with two.store.exclusive():
                with pytest.raises(LockTimeout, match="lease"):
                    await one.store.prepare_write(token, urgent=True)
                await (await two.store.prepare_write(token)).discard()


async def test_a_rejected_token_is_sent_by_no_other_machine(valkey, tmp_path, autojump_clock):
    """What the identity server has rejected is never sent again."""
    async with signed(tmp_path) as setup:
        one, two = await start(setup, valkey, tmp_path, "a", "b")
        identity = setup.emulator.identity
        next(iter(identity._refresh.values())).revoked = True
        await trio.sleep(EXPIRED)
        assert {machine.source.status().state for machine in (one, two)} == {"login_needed"}
        exchanges = [step for machine in (one, two) for step in machine.life.steps if step == "exchange"]
        assert len(exchanges) == 1
        assert "qproxy login" in two.source.status().message


async def test_a_transient_error_is_retried_by_any_machine(valkey, tmp_path, autojump_clock):
    """An exchange that fails without a decision leaves no record: another machine need not wait."""
    async with signed(tmp_path) as setup:
        one, two = await start(setup, valkey, tmp_path, "a", "b")
        two.source.refresher._token_state.not_before = trio.current_time() + SOON + 10
        setup.emulator.identity.script(FAULTS["503"])
        await one.wait_step("forget", 0)
        one.stop()
        await trio.sleep(20)
        assert setup.emulator.identity.issued_count == 2
        assert_one_login(setup, two)


async def test_new_tokens_are_published(valkey, tmp_path, autojump_clock):
    """A message with the name of the record, and no content, makes the other machines look at once."""
    async with signed(tmp_path) as setup:
        one, two = await start(setup, valkey, tmp_path, "a", "b")
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(valkey.path)
            listener = Exchange(sock)
            listener.execute("SUBSCRIBE", "q1:credentials")
            two.store.receive(Changes(False, frozenset({"q1:{a:other}:tokens"})))
            await trio.testing.wait_all_tasks_blocked()
            new = first_tokens(setup)
            await one.store.save(new)
            message = listener.read()
        assert message == [b"message", b"q1:credentials", one.store._key.encode()]
        assert two.token != new.access_token
        one.store.receive(Changes(True, frozenset()))
        two.store.receive(Changes(False, frozenset({message[2].decode()})))
        await trio.testing.wait_all_tasks_blocked()
        assert_one_login(setup, one, two)
