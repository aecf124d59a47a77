"""Wrong secrets are limited per address, on every route that takes the secret, in every process; a right one
passes."""

import json
import socket
from contextlib import AsyncExitStack

import pytest
import trio

from qproxy.access import secret_limiter
from qproxy.access.client_address import UNIX
from qproxy.access.secret_limiter import MAX_DELAY, SHARED_ATTEMPTS_PER_MINUTE, SecretLimiter
from qproxy.backends.local.grants import SqliteGrants
from qproxy.backends.local.rate_limits import FileRateLimits, MemoryRateLimits
from qproxy.server.asgi_client import InProcessClient
from qproxy.telemetry import RequestRecord
from qproxy.wire.errors import InvalidKeyError, RequestError
from tests.dashboard.browser import Browser
from tests.helpers import HELLO, h1, world

ADMIN, CLIENT = "the-admin's-own-key", "sk-the-clients-key"
LIMIT = 10
SETTINGS = {"api_keys": [CLIENT], "admin_key": ADMIN, "wrong_keys_per_minute": LIMIT}


def bearer(key):
    return [(b"authorization", f"Bearer {key}".encode())]


async def send_request(it, path, key, peer="192.0.2.1", method="GET", headers=(), body=b""):
    """Return the (status, headers, body) of a request from an address."""

    async def app(scope, receive, send):
        await it.app({**scope, "client": peer and (peer, 1)}, receive, send)

    fields = [*bearer(key), *headers]
    async with InProcessClient(app).request(method, path, headers=fields, body=body) as response:
        data = await response.read()
    return response.status, {name.decode(): value.decode() for name, value in response.headers}, data


async def handshake_status(it, key, peer="192.0.2.1"):
    """Return the status of a WebSocket handshake; 101 if it is accepted."""
    sent = []

    async def receive():
        return {"type": "websocket.connect"}

    async def send(message):
        sent.append(message)

    scope = {
        "type": "websocket", "asgi": {"version": "3.0"}, "http_version": "1.1", "scheme": "ws",
        "path": "/v1/realtime",
        "raw_path": b"/v1/realtime", "query_string": b"", "root_path": "", "subprotocols": [], "state": {},
        "headers": [(b"host", b"in-process"), *bearer(key)], "client": (peer, 1), "server": ("in-process", 0),
        "extensions": {"websocket.http.response": {}},
    }  # fmt: skip
    await it.app(scope, receive, send)
    return sent[0].get("status", 101)


KEYED_ROUTES = [
    ("/v1/chat/completions", "POST"),
    ("/v1/models", "GET"),
    ("/v1/responses/x", "GET"),
    ("/v1/embeddings", "POST"),
]


async def test_all_routes_share_one_limit(autojump_clock):
    """Wrong client keys on any route are counted together; then the right one is not even compared."""
    async with world(**SETTINGS) as it:
        statuses = []
        for number in range(LIMIT):
            path, method = KEYED_ROUTES[number % len(KEYED_ROUTES)]
            statuses.append((await send_request(it, path, f"wrong-{number}", method=method, body=b"{}"))[0])
        assert statuses == [401] * LIMIT
        for path, method in KEYED_ROUTES:
            status, fields, body = await send_request(
                it, path, CLIENT, method=method, body=json.dumps(HELLO).encode()
            )
            assert (status, json.loads(body)["error"]["code"]) == (429, "too_many_attempts")
            assert json.loads(body)["error"]["type"] == "rate_limit_error"
            assert 0 < int(fields["retry-after"]) <= 60
        assert await handshake_status(it, CLIENT) == 429
        assert (await send_request(it, "/v1/models", CLIENT, peer="192.0.2.2"))[0] == 200, (
            "others are not locked out"
        )
        assert (await send_request(it, "/metrics", ADMIN))[0] == 200, "another secret has another limit"
        await trio.sleep(60 / LIMIT)
        assert (await send_request(it, "/v1/models", CLIENT))[0] == 200


async def test_a_websocket_handshake_counts():
    """Wrong keys of handshakes are rejected with a response, and count."""
    async with world(**SETTINGS) as it:
        assert [await handshake_status(it, f"wrong-{n}") for n in range(LIMIT + 1)] == [401] * LIMIT + [429]
        assert (await send_request(it, "/v1/models", CLIENT))[0] == 429


async def test_the_admin_key_has_one_limit(autojump_clock):
    """Metrics, the login routes and the dashboard's form share the limit of the admin key."""
    async with world(**SETTINGS) as it:
        browser = Browser(it.app, peer="192.0.2.1")
        for number in range(LIMIT):
            if number % 3 == 0:
                assert (await browser.login(f"wrong-{number}")).status == 401
            else:
                path, method = (("/metrics", "GET"), ("/admin/accounts/one/login", "POST"))[number % 2]
                assert (await send_request(it, path, f"wrong-{number}", method=method))[0] == 401
        assert (await send_request(it, "/metrics", ADMIN))[0] == 429
        assert (await send_request(it, "/admin/accounts/one/login", ADMIN, method="POST"))[0] == 429
        page = await browser.login(ADMIN)
        assert (page.status, page.headers["content-type"]) == (429, "text/html; charset=utf-8")
        assert "retry-after" in page.headers


async def test_wrong_guesses_do_not_lock_out_an_accepted_client(autojump_clock):
    """Behind one proxy, a key and a session that were accepted earlier pass, whatever other clients have
    guessed since."""
    async with world(**SETTINGS) as it:
        operator = Browser(it.app, peer="192.0.2.1")
        assert (await operator.login(ADMIN)).status == 200
        assert (await send_request(it, "/v1/models", CLIENT))[0] == 200
        for number in range(3 * LIMIT):
            await send_request(it, "/v1/models", f"wrong-{number}")
            await send_request(it, "/metrics", f"wrong-{number}")
        assert (await send_request(it, "/v1/models", "wrong"))[0] == 429
        assert (await send_request(it, "/v1/models", CLIENT))[0] == 200
        assert (await send_request(it, "/metrics", ADMIN))[0] == 200
        assert (await operator.get("/dashboard")).status == 200
        assert (await Browser(it.app, peer="192.0.2.1").login(ADMIN)).status == 200
        assert (await send_request(it, "/metrics", CLIENT))[0] == 429, (
            "a key was accepted for what it is the key of"
        )


async def test_use_from_another_address_makes_a_key_no_easier_to_guess(autojump_clock):
    """A key accepted from one address stays limited from another."""
    async with world(**SETTINGS) as it:
        assert (await send_request(it, "/metrics", ADMIN, peer="198.51.100.1"))[0] == 200
        for number in range(LIMIT):
            await send_request(it, "/metrics", f"wrong-{number}")
        assert (await send_request(it, "/metrics", ADMIN))[0] == 429


async def test_addresses_behind_a_trusted_proxy(autojump_clock):
    """Each client of a trusted proxy has its own limit; X-Forwarded-For from any other peer is ignored."""
    async with world(**SETTINGS, trusted_proxies=["10.0.0.1", "unix"]) as it:
        for peer in ("10.0.0.1", None):
            for number in range(LIMIT + 1):
                sent = [(b"x-forwarded-for", b"192.0.2.%d, 203.0.113.7" % number)]
                status = (await send_request(it, "/v1/models", f"w-{number}", peer=peer, headers=sent))[0]
                assert status == (401 if number < LIMIT and peer else 429)
            sent = [(b"x-forwarded-for", b"203.0.113.8")]
            assert (await send_request(it, "/v1/models", CLIENT, peer=peer, headers=sent))[0] == 200
        for number in range(LIMIT + 1):
            sent = [(b"x-forwarded-for", b"192.0.2.%d" % number)]
            status = (await send_request(it, "/v1/models", f"w-{number}", peer="192.0.2.99", headers=sent))[0]
            assert status == (401 if number < LIMIT else 429)


async def test_an_ipv6_subscriber_has_one_limit():
    """All addresses of a /64 share one limit."""
    async with world(**SETTINGS) as it:
        for number in range(LIMIT):
            assert (await send_request(it, "/v1/models", "wrong", peer=f"2001:db8::{number}"))[0] == 401
        assert (await send_request(it, "/v1/models", "wrong", peer="2001:db8::ffff"))[0] == 429
        assert (await send_request(it, "/v1/models", "wrong", peer="2001:db8:0:1::1"))[0] == 401


async def test_a_unix_socket_peer_is_limited_as_one_client(monkeypatch):
    """A peer without an address is served, limited and logged as `unix`."""
    from tests import helpers

    monkeypatch.setattr(helpers._Socket, "family", socket.AF_UNIX)
    monkeypatch.setattr(helpers._Socket, "getpeername", lambda self: "")
    monkeypatch.setattr(helpers._Socket, "getsockname", lambda self: "/run/qproxy.sock")
    async with world(**SETTINGS) as it, h1(it.app) as client:
        records: list[RequestRecord] = []
        it.server.middleware.listeners += (records.append,)
        for key, status in [(CLIENT, 200), *[("wrong", 401)] * LIMIT, ("wrong", 429), (CLIENT, 200)]:
            await client.send("GET", "/v1/models", headers=[("authorization", f"Bearer {key}")])
            assert (await client.response())[0] == status
            client.http.start_next_cycle()
    assert {record.client for record in records} == {UNIX}


async def test_a_log_line_has_the_client_address():
    """The logged address is the one that is limited."""
    async with world(**SETTINGS, trusted_proxies=["10.0.0.0/8"]) as it:
        records: list[RequestRecord] = []
        it.server.middleware.listeners += (records.append,)
        sent = [(b"x-forwarded-for", b"127.0.0.1, 203.0.113.7")]
        await send_request(it, "/v1/models", CLIENT, peer="10.1.2.3", headers=sent)
        await send_request(it, "/v1/models", CLIENT, peer="192.0.2.1", headers=sent)
    assert [record.to_json()["client"] for record in records] == ["203.0.113.7", "192.0.2.1"]


async def test_missing_and_revoked_keys_are_no_guesses(tmp_path):
    """Requests without a key and requests with a revoked key do not count as guesses."""
    from qproxy.backends.local import key_file

    path = tmp_path / "keys.json"
    _, revoked = key_file.create(path, name="old")
    _, good = key_file.create(path, name="good")
    key_file.revoke(path, "old")
    async with world(**{**SETTINGS, "api_keys": [], "keys_file": str(path)}) as it:
        for _ in range(2 * LIMIT):
            assert (await send_request(it, "/v1/models", ""))[0] == 401
            assert (await send_request(it, "/v1/models", revoked))[0] == 401
        assert (await send_request(it, "/v1/models", good))[0] == 200


async def test_a_server_without_keys_counts_no_guesses():
    """A server without keys accepts any key, so no guess is wrong."""
    async with world(wrong_keys_per_minute=1) as it:
        for number in range(5):
            assert (await send_request(it, "/v1/models", f"anything-{number}"))[0] == 200
        store = it.server.state.client_keys._store
        assert isinstance(store, MemoryRateLimits)
        assert len(store) == 0


@pytest.mark.parametrize("restart", [False, True])
async def test_processes_share_guesses_and_accepted_keys(tmp_path, restart):
    """Guesses at one worker count at another and after a restart; an accepted key passes at all of them."""
    files = {"wrong_keys_file": str(tmp_path / "wrong_keys"), "access_file": str(tmp_path / "access.sqlite3")}
    async with AsyncExitStack() as stack:
        first_world = await stack.enter_async_context(world(**SETTINGS, **files))
        assert (await send_request(first_world, "/metrics", ADMIN))[0] == 200
        for number in range(LIMIT):
            assert (await send_request(first_world, "/metrics", f"wrong-{number}"))[0] == 401
        if restart:
            await stack.aclose()
        second_world = await stack.enter_async_context(world(**SETTINGS, **files))
        assert (await send_request(second_world, "/metrics", "wrong"))[0] == 429
        assert (await send_request(second_world, "/metrics", ADMIN))[0] == 200


def reject():
    raise InvalidKeyError("no")


@pytest.fixture
def limiter():
    return SecretLimiter("key", LIMIT, SqliteGrants(None), MemoryRateLimits(max_subjects=5))


async def test_guesses_from_all_addresses_are_only_delayed(autojump_clock, limiter):
    """Beyond a rate per minute wrong secrets wait, a bounded number for a bounded time; a right one never
    does."""

    async def guess_wrong(number):
        with pytest.raises(InvalidKeyError):
            await limiter.verify("w", f"192.0.{number // 200}.{number % 200}", reject)

    started = trio.current_time()
    for number in range(SHARED_ATTEMPTS_PER_MINUTE):
        await guess_wrong(number)
    assert trio.current_time() == started
    await guess_wrong(SHARED_ATTEMPTS_PER_MINUTE)
    assert 0 < trio.current_time() - started <= MAX_DELAY
    now = trio.current_time()
    async with trio.open_nursery() as nursery:
        for number in range(1000):
            nursery.start_soon(guess_wrong, 1000 + number)
        await trio.testing.wait_all_tasks_blocked()
        assert limiter._delayed == secret_limiter.MAX_DELAYED
        assert await limiter.verify("right", "198.51.100.1", lambda: "in") == "in"
        assert trio.current_time() == now
    assert limiter._delayed == 0


async def test_concurrent_guesses_share_the_limit(limiter):
    """A thousand concurrent requests get as many comparisons as a thousand sequential ones."""
    compared = []

    def compare():
        compared.append(1)
        reject()

    async def guess(number):
        with pytest.raises((InvalidKeyError, RequestError)):
            await limiter.verify(f"guess-{number}", "192.0.2.1", compare)

    async with trio.open_nursery() as nursery:
        for number in range(1000):
            nursery.start_soon(guess, number)
    assert len(compared) == LIMIT


async def test_memory_is_bounded(monkeypatch, limiter, autojump_clock):
    """The numbers of remembered addresses and accepted keys are bounded."""
    monkeypatch.setattr(secret_limiter, "MAX_ACCEPTED", 5)
    for number in range(20):
        with pytest.raises(InvalidKeyError):
            await limiter.verify("w", f"192.0.2.{number}", reject)
        await limiter.verify("right", f"192.0.2.{number}", lambda: None)
    assert (len(limiter._store), len(limiter._accepted)) == (5, 5)


async def test_an_accepted_key_that_is_revoked_is_limited(limiter, autojump_clock):
    """A key that is no longer right counts as any wrong one, and then waits as any."""
    await limiter.verify("k", "192.0.2.1", lambda: None)
    for _ in range(LIMIT):
        with pytest.raises(InvalidKeyError):
            await limiter.verify("k", "192.0.2.1", reject)
    with pytest.raises(RequestError, match="wrong_keys_per_minute"):
        await limiter.verify("other", "192.0.2.1", lambda: None)


async def test_no_secret_is_on_disk_or_in_a_repr(tmp_path):
    """Only digests are stored."""
    path = tmp_path / "access.sqlite3"
    limiter = SecretLimiter("key", LIMIT, SqliteGrants(path), FileRateLimits(tmp_path / "wrong_keys"))
    await limiter.verify("opaque-secret", "192.0.2.1", lambda: None)
    with pytest.raises(InvalidKeyError):
        await limiter.verify("another-secret", "192.0.2.1", reject)
    kept = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert b"secret" not in kept
    assert "secret" not in repr(limiter)


async def test_a_failing_disk_rejects_no_right_key(tmp_path, caplog):
    """The limit continues in this process, and a right key is accepted."""
    blocked = tmp_path / "file"
    blocked.write_text("")
    limiter = SecretLimiter(
        "key", 2, SqliteGrants(blocked / "access"), FileRateLimits(blocked / "wrong_keys")
    )
    assert await limiter.verify("right", "192.0.2.1", lambda: "in") == "in"
    assert "not shared with other workers" in caplog.text
    for _ in range(2):
        with pytest.raises(InvalidKeyError):
            await limiter.verify("w", "192.0.2.1", reject)
    with pytest.raises(RequestError):
        await limiter.verify("w", "192.0.2.1", reject)
    assert await limiter.verify("right", "192.0.2.1", lambda: "in") == "in"
