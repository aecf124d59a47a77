"""Who may use a route is what the route says: every route of the table is asked, with every kind of key."""

import re
import time

import pytest

from qproxy.backends.local import key_file
from qproxy.server.authentication import Access
from tests.helpers import world


def bearer(key):
    return [(b"authorization", b"Bearer " + key.encode())]


def ways(it):
    """(path, method, access) of every route, with something in place of its parameters."""
    for family in it.server.route_groups:
        for route in family.routes():
            for path in route.paths():
                filled = re.sub("<[^<>]+>", "x", path)
                yield from ((filled, method, route.access) for method in route.methods)


async def status_of(it, path, method, headers):
    async with it.client.request(method, path, headers=headers, body=b"{}") as response:
        await response.read()
        return response.status


@pytest.fixture
def shown(tmp_path):
    """A file of keys, and one key of each kind by what it is."""
    path, now = tmp_path / "keys.json", int(time.time())
    _, good = key_file.create(path, name="good")
    _, revoked = key_file.create(path, name="revoked")
    _, expired = key_file.create(path, name="expired", expires=now - 1)
    key_file.revoke(path, "revoked")
    refused = {
        "no key": [],
        "a wrong key": bearer("sk-wrong"),
        "no Bearer": [(b"authorization", b"Basic eDp5")],
    }
    refused |= {"revoked": bearer(revoked), "expired": bearer(expired), "an empty key": bearer("")}
    return path, bearer(good), refused


async def test_every_route_asks_for_what_it_says(shown):
    """Open routes ask nobody; the others refuse every key but the right one with a 401, before anything
    else."""
    path, good, refused = shown
    async with world(keys_file=str(path), admin_key="the-admin", wrong_keys_per_minute=0) as it:
        asked = set()
        for target, method, access in ways(it):
            if access is Access.SESSION:  # tests/dashboard/test_auth.py
                continue
            right = {Access.OPEN: [], Access.KEY: good, Access.ADMIN: bearer("the-admin")}[access]
            assert await status_of(it, target, method, right) != 401, target
            wrong = refused | ({"a client's key": good} if access is Access.ADMIN else {})
            for kind, headers in wrong.items():
                status = await status_of(it, target, method, headers)
                assert (status == 401) is (access is not Access.OPEN), (method, target, kind, status)
            asked.add(access)
        assert {Access.OPEN, Access.KEY} <= asked


async def test_the_other_ways_to_show_a_key(shown):
    """x-api-key and api-key open what Authorization does."""
    path, good, _ = shown
    secret = good[0][1].removeprefix(b"Bearer ")
    async with world(keys_file=str(path)) as it:
        for name in (b"x-api-key", b"api-key"):
            assert await status_of(it, "/v1/models", "GET", [(name, secret)]) == 200
            assert await status_of(it, "/v1/models", "GET", [(name, b"other")]) == 401
            for empty in (b"Bearer", b"Bearer ", b"bearer   "):
                headers = [(b"authorization", empty), (name, secret)]
                assert await status_of(it, "/v1/models", "GET", headers) == 200
                assert await status_of(it, "/v1/models", "GET", headers[:1]) == 401


async def test_no_route_is_outside_the_table(shown):
    """Every rule of the app has its entry, and what is not a route says so to anyone."""
    path, _, _ = shown
    async with world(keys_file=str(path)) as it:
        assert {rule.endpoint for rule in it.app.url_map.iter_rules()} == it.server.routes.keys()
        assert await status_of(it, "/v1/nope", "GET", []) == 404
