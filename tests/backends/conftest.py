"""The servers of the tests, each started when the first test asks for it."""

from collections.abc import Iterator

import pytest

from tests.backends.postgres_server import PostgresServer
from tests.backends.redis.groups import Cluster, SentinelGroup
from tests.backends.redis.server import Server


@pytest.fixture(scope="session")
def postgres():
    """Return a PostgreSQL server for all tests of this process; each creates a schema of its own."""
    with PostgresServer() as server:
        yield server


@pytest.fixture(scope="session")
def valkey_session() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@pytest.fixture
def valkey(valkey_session: Server) -> Server:
    """An empty Valkey server."""
    valkey_session.execute("FLUSHALL")
    return valkey_session


@pytest.fixture(scope="session")
def cluster_session() -> Iterator[Cluster]:
    cluster = Cluster()
    yield cluster
    cluster.close()


@pytest.fixture
def cluster(cluster_session: Cluster) -> Cluster:
    """An empty cluster of three primaries and a replica."""
    cluster_session.wait_ready()
    for server in cluster_session.servers:
        if server.is_primary:
            server.execute("FLUSHALL")
    return cluster_session


@pytest.fixture
def sentinel() -> Iterator[SentinelGroup]:
    """A primary and a replica that Sentinel watches."""
    group = SentinelGroup()
    yield group
    group.close()
