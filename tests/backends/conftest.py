"""The database server of the tests, started by the first test that uses it."""

import pytest

from tests.backends.postgres_server import PostgresServer


@pytest.fixture(scope="session")
def postgres():
    """Return a PostgreSQL server for all tests of this process; each creates a schema of its own."""
    with PostgresServer() as server:
        yield server
