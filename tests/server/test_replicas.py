"""The processes that serve together, on the dashboard, and the metrics of what they share."""

import json
import os
import platform
from dataclasses import replace

import trio

from qproxy.server.replicas import (
    REPLICA_QUERY,
    Replica,
    SharedStateStatistics,
    list_replicas,
    parse_replica,
    this_replica,
)
from qproxy.telemetry.peers import Peers
from qproxy.version import VERSION
from tests.dashboard.browser import ADMIN_KEY, Browser
from tests.helpers import world
from tests.server.test_metrics import numbers
from tests.telemetry.test_metrics import value

OTHER = Replica("other-machine", 7, "9.9.9", 1_700_000_000.0, 3, beat_at=1_700_000_100.0)


class FakeMonitor:
    """A server that is there or not."""

    def __init__(self) -> None:
        self.found: list[Replica] | None = [OTHER]

    def describe_process(self, describe):
        self.describe = describe

    async def replicas(self):
        return self.found

    async def require_compatible(self):
        pass

    def statistics(self):
        commands = {"ok": 5, "error": 1, "unknown": 2, "unavailable": 4}
        return SharedStateStatistics(self.found is not None, 3, commands, 0.5)


async def test_the_dashboard_lists_the_processes_of_all_machines():
    """Those that the server has seen; this machine's, with a note, while it cannot be used."""
    monitor = FakeMonitor()
    async with world(admin_key=ADMIN_KEY) as it:
        it.server.state = replace(it.server.state, shared_state=monitor)
        browser = Browser(it.app)
        await browser.login()
        page = await browser.get("/dashboard")
        assert "other-machine" in page.html
        assert "9.9.9" in page.html
        assert "2023-11-14 22:13:20 UTC" in page.html
        monitor.found = None
        page = await browser.get("/dashboard")
        assert "other-machine" not in page.html
        assert platform.node() in page.html
        assert "shared state cannot be used" in page.html


async def test_without_shared_state_the_workers_of_this_machine_are_listed(tmp_path):
    """This process and its siblings; one of another version that replies in another way is left out."""
    directory = tmp_path / "workers"
    async with trio.open_nursery() as nursery:
        for name, reply in (("1", replace(OTHER, beat_at=None).to_json()), ("2", "[]"), ("3", "")):
            sibling = Peers(directory)
            sibling._socket_path = directory / name
            await nursery.start(sibling.listen, {REPLICA_QUERY: reply.encode})
        own = Peers(directory)
        found, of_all_machines = await list_replicas(this_replica(2), own, None)
        nursery.cancel_scope.cancel()
    assert not of_all_machines
    assert [(each.machine, each.pid, each.in_flight) for each in found] == sorted(
        [("other-machine", 7, 3), (platform.node(), os.getpid(), 2)], key=lambda each: each[1]
    )


def test_a_description_of_a_later_version_is_read():
    """Fields that are not known here are ignored; what is no description is none."""
    text = json.dumps({**json.loads(this_replica(1).to_json()), "zone": "b"})
    found = parse_replica(text, 5.0)
    assert found is not None
    assert (found.version, found.beat_at) == (VERSION, 5.0)
    assert [parse_replica(text) for text in ("{}", "[]", "x", "null", '{"machine": 1}')] == [None] * 5


async def test_the_server_describes_its_process():
    """With the requests in flight; without shared_state there are no metrics of it."""
    async with world(admin_key="the-admins") as it:
        assert json.loads(it.server.state.replica().to_json())["in_flight"] == 0
        assert not [name for name in await numbers(it) if name[0].startswith("qproxy_shared_state")]
        it.server.state = replace(it.server.state, shared_state=FakeMonitor())
        found = await numbers(it)
    assert value(found, "qproxy_shared_state_up") == 1
    assert value(found, "qproxy_shared_state_outbox") == 3
    assert value(found, "qproxy_shared_state_commands_total", outcome="unknown") == 2
    assert value(found, "qproxy_shared_state_seconds_total") == 0.5
