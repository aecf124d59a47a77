"""A route's declared access applies: every route of the table gets every kind of key."""

import re
import time

import pytest

from qproxy.backends.local import key_file
from qproxy.server.authentication import Access
from tests.helpers import world


def bearer(key):
    return [(b"authorization", b"Bearer " + key.encode())]


def targets(it):
    """Yield (path, method, access) of every route, with its parameters filled."""
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
def keys(tmp_path):
    """Return a file of keys, a valid key's headers, and invalid headers by kind."""
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


async def test_every_route_requires_its_access(keys):
    """Open routes need no key; the others reject every key but the right one with a 401, before anything
    else."""
    path, good, refused = keys
    async with world(keys_file=str(path), admin_key="the-admin", wrong_keys_per_minute=0) as it:
        covered = set()
        for target, method, access in targets(it):
            if access is Access.SESSION:  # tests/dashboard/test_auth.py
                continue
            right = {Access.OPEN: [], Access.KEY: good, Access.ADMIN: bearer("the-admin")}[access]
            assert await status_of(it, target, method, right) != 401, target
            wrong = refused | ({"a client's key": good} if access is Access.ADMIN else {})
            for kind, headers in wrong.items():
                status = await status_of(it, target, method, headers)
                assert (status == 401) is (access is not Access.OPEN), (method, target, kind, status)
            covered.add(access)
        assert {Access.OPEN, Access.KEY} <= covered


async def test_other_key_headers(keys):
    """x-api-key and api-key work like Authorization."""
    path, good, _ = keys
    secret = good[0][1].removeprefix(b"Bearer ")
    async with world(keys_file=str(path)) as it:
        for name in (b"x-api-key", b"api-key"):
            assert await status_of(it, "/v1/models", "GET", [(name, secret)]) == 200
            assert await status_of(it, "/v1/models", "GET", [(name, b"other")]) == 401
            for empty in (b"Bearer", b"Bearer ", b"bearer   "):
                headers = [(b"authorization", empty), (name, secret)]
                assert await status_of(it, "/v1/models", "GET", headers) == 200
                assert await status_of(it, "/v1/models", "GET", headers[:1]) == 401


async def test_no_route_is_outside_the_table(keys):
    """Every rule of the app has its entry, and an unknown path is a 404 for any client."""
    path, _, _ = keys
    async with world(keys_file=str(path)) as it:
        assert {rule.endpoint for rule in it.app.url_map.iter_rules()} == it.server.routes.keys()
        assert await status_of(it, "/v1/nope", "GET", []) == 404


async def test_every_route_builds_its_url(autojump_clock):
    """Quart's `url_for` has the URL of each route, whose builder is compiled at its first use."""
    async with world() as it:
        adapter = it.app.url_map.bind("localhost")
        for rule in it.app.url_map.iter_rules():
            values = dict.fromkeys(rule.arguments, "a b")
            url = adapter.build(rule.endpoint, {**values, "more": "1&2"})
            path = re.sub("<[^<>]+>", "a%20b", rule.rule)
            assert url.removeprefix("ws://localhost") == f"{path}?more=1%262"
