"""The server authenticates hosts, keys and pages, and accepts only JSON bodies from pages."""

import json
import re
from pathlib import Path

import h2.events
import pytest

import qproxy
from qproxy.access.api_keys import StaticApiKeys, keys_from_settings
from qproxy.server import Route, Server
from qproxy.server.asgi_client import in_process
from qproxy.server.authentication import Access, Authentication
from qproxy.server.cors import EXPOSED_HEADERS
from qproxy.server.host_policy import HostPolicy, require_local
from qproxy.system.exposure import is_loopback
from qproxy.wire import json_codec
from qproxy.wire.endpoints import OPENAI
from qproxy.wire.errors import RequestError
from qproxy.wire.model_aliases import ModelAliases
from qproxy.wire.sealing import TextSealer
from tests.helpers import HELLO, h1, h2c, world

LOOPBACK = {"server": ("127.0.0.1", 8787)}
PATH = "/v1/chat/completions"
ORIGIN = [(b"origin", b"https://app.test")]
JSON = [("content-type", "application/json")]


def authentication(*, api_keys=(), admin_key=None, allowed_hosts=(), insecure_no_auth=False):
    return Authentication(
        api_keys=StaticApiKeys(keys_from_settings(list(api_keys))),
        client_secrets=TextSealer([bytes(32)], "ek_"),
        admin_key=admin_key,
        hosts=HostPolicy(allowed_hosts=allowed_hosts, insecure_no_auth=insecure_no_auth),
        aliases=ModelAliases({}),
    )


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:8787", "127.0.0.1:80", "[::1]:8787", "a.localhost.", ""]
)
def test_names_of_this_machine(host):
    """A request that names this machine is accepted on loopback."""
    assert authentication().authenticate({"host": host}, LOOPBACK) is None


@pytest.mark.parametrize(
    "host",
    [
        "evil.test", "evil.test:8787", "127.0.0.1.evil.test", "localhost.evil.test", "10.0.0.1", "80",
        "2130706433",
        ":80", ":", ".", "[]", "[", "a:1:2", "localhost:80:80", "x@localhost:80", "127.1",
    ],
)  # fmt: skip
def test_a_foreign_name_for_this_machine(host):
    """Another name for loopback is DNS rebinding, unless it is allowed, keys are required, or the address is
    not loopback."""
    with pytest.raises(RequestError, match="allowed_hosts") as rejection:
        authentication().authenticate({"host": host}, LOOPBACK)
    assert (rejection.value.status, rejection.value.code) == (403, "host_not_allowed")
    assert (
        authentication(insecure_no_auth=True).authenticate({"host": host}, {"server": ("192.0.2.7", 8787)})
        is None
    )
    assert authentication(allowed_hosts=("*",)).authenticate({"host": host}, LOOPBACK) is None
    keyed = authentication(api_keys=["secret"])
    assert keyed.authenticate({"host": host, "authorization": "Bearer secret"}, LOOPBACK) is not None


@pytest.mark.parametrize("address", ["192.0.2.7", "0.0.0.0", "2001:db8::1", "::ffff:192.0.2.7"])
def test_a_public_address_without_keys(address, caplog):
    """An address that other machines reach requires keys or insecure_no_auth, whatever started the server;
    one log line reports it."""
    auth, scope = authentication(), {"server": (address, 8787)}
    for _ in range(2):
        with pytest.raises(RequestError, match="qproxy keys create") as rejection:
            auth.authenticate({"host": "localhost"}, scope)
        assert (rejection.value.status, rejection.value.code) == (403, "keys_required")
    assert [address in record.getMessage() for record in caplog.records] == [True]
    assert authentication(insecure_no_auth=True).authenticate({}, scope) is None
    assert authentication().authenticate({"host": "localhost"}, {"server": None}) is None


@pytest.mark.parametrize(
    "origin",
    ["http://[", "http://[::1", "http://[x]:1", "http://]", "null", "\xff", "//", "http://", "a" * 9000],
)
def test_an_invalid_origin(origin):
    """An invalid origin counts as a foreign origin, and raises nothing else."""
    scope = {**LOOPBACK, "client": ("127.0.0.1", 1)}
    with pytest.raises(RequestError) as rejection:
        require_local({"host": "localhost", "origin": origin}, scope)
    assert rejection.value.status == 403


async def test_keys_are_required_over_every_protocol(autojump_clock):
    """HTTP/1.1, HTTP/2 and WebSocket on a public address are rejected with a message; health stays open."""
    async with world(insecure_no_auth=False) as it:  # `served` gives connections a public address
        async with h1(it.app) as client:
            for path, status in ((PATH, 403), ("/v1/embeddings", 403), ("/v1/models", 403), ("/livez", 200)):
                method = "GET" if status == 200 or path.endswith("models") else "POST"
                await client.send(method, path, b"{}" if method == "POST" else b"", JSON)
                answer = await client.response()
                assert answer[0] == status
                assert status == 200 or json.loads(answer[1])["error"]["code"] == "keys_required"
                client.http.start_next_cycle()
        async with h2c(it.app) as client:
            await client.send("POST", PATH, json.dumps(HELLO).encode(), JSON)
            head = await client.event(h2.events.ResponseReceived)
            assert dict(head.headers)[b":status"] == b"403"
        async with h1(it.app) as client:
            await client.stream.send_all(
                b"GET /v1/realtime?model=x HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\nupgrade: "
                b"websocket\r\n"
                b"sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
            )
            assert (await client.stream.receive_some()).startswith(b"HTTP/1.1 403 ")


def test_loopback_names():
    """Only an unambiguous loopback name counts as loopback."""
    assert all(
        map(is_loopback, ("127.0.0.1", "127.8.9.1", "::1", "::ffff:127.0.0.1", "localhost", "x.localhost"))
    )
    assert not any(
        map(is_loopback, ("0.0.0.0", "::", "::ffff:192.0.2.1", "example.test", "localhost.test", "", "1"))
    )


async def test_the_host_is_checked_on_the_wire(monkeypatch):
    """HTTP/1.1's Host and HTTP/2's :authority are checked, except for health."""
    from tests import helpers

    monkeypatch.setattr(helpers._Socket, "getsockname", lambda self: ("127.0.0.1", 2))
    async with world() as it:
        for path, status in (("/v1/models", 403), ("/livez", 200)):
            async with h1(it.app) as client:
                await client.send("GET", path, host="evil.test")
                assert (await client.response())[0] == status
        async with h2c(it.app) as client:
            fields = [
                (":method", "GET"),
                (":path", "/v1/models"),
                (":scheme", "http"),
                (":authority", "evil.test"),
            ]
            client.http.send_headers(1, fields, end_stream=True)
            await client.flush()
            assert dict((await client.event(h2.events.ResponseReceived)).headers)[b":status"] == b"403"


async def test_a_page_must_send_json():
    """A request with an Origin cannot be a form's or a blob's: those arrive without a preflight."""
    async with world() as it:
        for headers, status in (([], 200), (ORIGIN, 415)):
            async with it.client.request(
                "POST", PATH, headers=headers, body=json.dumps(HELLO).encode()
            ) as response:
                assert response.status == status
                await response.read()
        assert (await it.post(HELLO, headers=ORIGIN))[0] == 200


async def test_allowed_pages():
    """An allowed page's preflight succeeds, and the page may read all qproxy headers, also of rejections."""
    async with world(cors_origins=["https://app.test"], api_keys=["k"]) as it:
        preflight = [
            *ORIGIN,
            (b"access-control-request-headers", b"x-own"),
            (b"access-control-request-private-network", b"true"),
        ]
        async with it.client.request("OPTIONS", PATH, headers=preflight) as response:
            head = dict(response.headers)
            assert response.status == 204
        assert head[b"access-control-allow-headers"] == b"x-own"
        assert head[b"access-control-allow-private-network"] == b"true"
        status, headers, _ = await it.post(HELLO, headers=ORIGIN)
        assert status == 401
        exposed = headers["access-control-expose-headers"].split(", ")
        assert exposed == [*OPENAI.exposed_headers, *EXPOSED_HEADERS]
        extensions = {name for name in headers if name.startswith("x-") and name != "x-content-type-options"}
        assert extensions <= set(exposed)
        assert headers["access-control-allow-origin"] == "https://app.test"
        assert (
            "access-control-allow-origin"
            not in (await it.post(HELLO, headers=[(b"origin", b"https://b.test")]))[1]
        )


def test_pages_may_read_every_qproxy_header():
    """Every response header that qproxy writes is readable by a page's script."""
    sources = (path.read_text("utf-8") for path in Path(qproxy.__file__).parent.rglob("*.py"))
    written = {name for source in sources for name in re.findall(r'"(x-(?:qproxy|should)-[a-z-]+)"', source)}
    assert "x-qproxy-tools" in written
    assert written <= {*EXPOSED_HEADERS, *OPENAI.exposed_headers}


async def test_security_headers():
    """Every response has the headers that forbid sniffing, framing and referrers."""
    async with world() as it:
        for path in ("/livez", "/v1/nope"):
            async with it.client.request("GET", path) as response:
                head = dict(response.headers)
            assert head[b"x-content-type-options"] == b"nosniff"
            assert head[b"content-security-policy"] == b"default-src 'none'; frame-ancestors 'none'"
            assert head[b"referrer-policy"] == b"no-referrer"


@pytest.mark.parametrize(
    ("text", "depth"),
    [("1", 0), ("[]", 1), ("[[],{}]", 2), ('{"a":[{"b":[]}]}', 4), ("[" * 500 + "]" * 500, 500)],
)
def test_depth(text, depth):
    """A value is as deep as its arrays and objects are nested."""
    value = json_codec.loads(text)
    assert not json_codec.exceeds_depth(value, depth)
    assert depth == 0 or json_codec.exceeds_depth(value, depth - 1)


async def test_a_body_that_is_too_deep():
    """A body beyond max_json_depth is a 400 that names the limit."""
    async with world(max_json_depth=5) as it:
        assert (await it.post(HELLO))[0] == 200
        status, _, body = await it.post({**HELLO, "metadata": [[[[[]]]]]})
        assert (status, body["error"]["code"]) == (400, "invalid_value")
        assert "5 levels" in body["error"]["message"]


ADMIN_CASES = {
    "with the key": ("s", {"authorization": "Bearer s"}, "192.0.2.7", None),
    "with another key": ("s", {"authorization": "Bearer t"}, "127.0.0.1", 401),
    "with no key though one is set": ("s", {}, "127.0.0.1", 401),
    "on the same machine": (None, {"host": "localhost:1"}, "127.0.0.1", None),
    "from another machine": (None, {"host": "localhost:1"}, "192.0.2.7", 403),
    "by another name": (None, {"host": "evil.test"}, "127.0.0.1", 403),
    "by a name that is allowed to clients": (None, {"host": "proxied.test"}, "127.0.0.1", 403),
    "through a proxy on the same machine": (
        None,
        {"host": "localhost", "x-forwarded-for": "192.0.2.7"},
        "127.0.0.1",
        403,
    ),
    "from a page": (None, {"host": "localhost", "origin": "https://evil.test"}, "127.0.0.1", 403),
    "from a page of this machine": (None, {"host": "localhost", "origin": "http://localhost:1"}, "::1", None),
}


@pytest.mark.parametrize(("key", "headers", "peer", "status"), ADMIN_CASES.values(), ids=ADMIN_CASES)
def test_admin_routes_require_the_operator(key, headers, peer, status):
    """An admin route requires the admin key, or without one a direct request from the same machine."""
    auth, scope = (
        authentication(admin_key=key, allowed_hosts=("proxied.test",)),
        {**LOOPBACK, "client": (peer, 1)},
    )
    if status is None:
        auth.require_admin(headers, scope)
    else:
        with pytest.raises(RequestError) as rejection:
            auth.require_admin(headers, scope)
        assert rejection.value.status == status


async def test_a_clients_key_opens_no_admin_route():
    """The access of a route determines its key."""

    class Ruling:
        def routes(self):
            yield Route("/rule", ("GET",), rule, Access.ADMIN, versioned=False)

    async def rule():
        return {"ruled": True}

    async with world(api_keys=["client"], admin_key="admin") as it:
        server = Server(it.server.state, [lambda server: Ruling()])
        async with in_process(server.app()) as client:
            for key, status in (("client", 401), ("admin", 200)):
                headers = [(b"authorization", b"Bearer " + key.encode())]
                async with client.request("GET", "/rule", headers=headers) as response:
                    assert response.status == status
