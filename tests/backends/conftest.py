"""The database server of the tests, started when the first one asks for it."""

import pytest

from tests.backends.postgres_server import PostgresServer


@pytest.fixture(scope="session")
def postgres():
    """A PostgreSQL server for all tests of this process; each takes a schema of its own."""
    with PostgresServer() as server:
        yield server
