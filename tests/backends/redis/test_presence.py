"""The processes that share a server: who lives, their descriptions, and who is too old for the data."""

from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from qproxy import cli
from qproxy.backends.redis.client import RedisClient
from qproxy.backends.redis.errors import RedisUnavailable
from qproxy.backends.redis.exchange import BudgetLimit
from qproxy.backends.redis.monitor import RedisMonitor
from qproxy.backends.redis.report import connection_of
from qproxy.backends.redis.script import Script, load_script
from qproxy.backends.redis.subjects import Subjects
from qproxy.config.accounts import ConfigError
from qproxy.server.replicas import Replica
from tests.backends.redis.groups import until

LIMITS = load_script("limits")


def client_of(server, **options: Any) -> RedisClient:
    settings: dict[str, Any] = {"prefix": "q", "timeout": 5.0, "connect_timeout": 5.0, **options}
    return RedisClient(server.address, **settings)


@asynccontextmanager
async def connected(server, **options):
    """A client, once the server has replied which schema it has."""
    async with trio.open_nursery() as nursery:
        client = client_of(server, **options)
        nursery.start_soon(client.run)
        with trio.fail_after(20):
            await client.presence.joined.wait()
        yield client
        nursery.cancel_scope.cancel()


async def test_processes_see_each_other_until_they_leave(valkey):
    """Each is listed with its own description and the time of its last sign of life."""
    async with connected(valkey) as one, connected(valkey) as two:
        for number, client in enumerate((one, two)):
            replica = Replica(f"machine{number}", number, "1.0", 5.0, number)
            RedisMonitor(client, int).describe_process(replica.to_json)
            client.presence.beat()
        await until(lambda: one.processes == two.processes == 2)
        found = await one.presence.replicas()
        assert sorted((each.machine, each.pid, each.in_flight) for each in found) == [
            ("machine0", 0, 0),
            ("machine1", 1, 1),
        ]
        assert all(each.beat_at is not None and each.beat_at > 1e9 for each in found)
        valkey.execute("SET", f"q1:process:{one.process}", '["of another version"]')
        assert [each.machine for each in await RedisMonitor(two, int).replicas() or ()] == ["machine1"]
        await two.presence.end()
        assert await one.presence.replicas() == []
        one.presence.beat()
        await until(lambda: one.processes == 1)


async def test_without_a_server_no_process_is_known(valkey):
    """Neither does a process that ends wait for one."""
    client = client_of(valkey)
    assert await RedisMonitor(client, int).replicas() is None
    client.presence.beat()
    await client.presence.end()


async def test_two_versions_serve_side_by_side(valkey):
    """A newer program whose data the older one can read, and whose script differs, shares the same limits."""
    newer = Script(LIMITS.text + "\n-- of a later version")
    used = 0
    async with (
        connected(valkey, scripts=[LIMITS]) as old,
        connected(valkey, scripts=[newer], schema=1, least_reader=1) as new,
        connected(valkey, schema=2, least_reader=1) as newest,
        trio.open_nursery() as nursery,
    ):
        assert [client.refusal for client in (old, new, newest)] == ["", "", ""]
        assert valkey.execute("HMGET", "q:meta", "schema", "least_reader") == [b"2", b"1"]
        parts = []
        for client, script in ((old, LIMITS), (new, newer)):
            subjects = Subjects(client, script, "k", "closed")
            nursery.start_soon(subjects.run)
            parts.append((subjects, subjects.get("x", {}, [BudgetLimit("day", "requests", 30.0)])))
        for _ in range(40):
            for subjects, subject in parts:
                if (await subjects.reserve(subject, {"requests": 1})).granted:
                    used += 1
                    subject.hold({"requests": 1}, -1)
                    subject.use({"requests": 1})
                    subjects.settle(subject)
        nursery.cancel_scope.cancel()
    assert used == 30


async def test_a_program_that_is_too_old_does_not_start(valkey, caplog):
    """The error says why and what to do; what runs already stops using the server at its next connection."""
    async with connected(valkey) as old, connected(valkey, schema=3, least_reader=2):
        assert not old.refusal
        valkey.execute("CLIENT", "KILL", "TYPE", "normal")
        await until(lambda: old.refusal)
        await until(lambda: not old.is_connected)
        with pytest.raises(RedisUnavailable, match="upgrade qproxy"):
            await old.request("GET", "x")
    client = client_of(valkey)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.run)
        with pytest.raises(ConfigError, match=r"^shared_state: its data has schema 3, .* upgrade qproxy"):
            await RedisMonitor(client, int).require_compatible()
        nursery.cancel_scope.cancel()
    with pytest.raises(RedisUnavailable, match="shared_state_prefix"):
        async with connection_of(client_of(valkey), 5):
            pass
    async with connected(valkey, prefix="other") as client:
        assert not client.refusal
    assert valkey.execute("HGET", "q:meta", "schema") == b"3"


@pytest.mark.parametrize("workers", ["1", "2"])
def test_serve_ends_with_one_line(workers, valkey, tmp_path, monkeypatch, capsys):
    """Neither a server nor a worker starts; the exit code is that of wrong settings."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QPROXY_HOME", str(tmp_path))
    valkey.execute("HSET", "q:meta", "schema", "3", "least_reader", "2")
    upstream = ["--upstream", "http://127.0.0.1:9/v1", "--shared-state", f"unix://{valkey.path}"]
    assert cli.main(["serve", "--port", "0", "--workers", workers, *upstream]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("qproxy: ")]
    assert "its data has schema 3" in line
    assert "upgrade qproxy" in line
