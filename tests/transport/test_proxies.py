"""Proxies: selection, HTTP's two request forms, and SOCKS 5."""

import ssl
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio
import trio.testing
import trustme
from hypothesis import given
from hypothesis import strategies as st

from qproxy.bootstrap import transport as bootstrap
from qproxy.config import Config
from qproxy.config.accounts import ConfigError
from qproxy.diagnostics import network
from qproxy.transport import ProxySettings, UpstreamTransport, socks
from qproxy.transport.proxy import Origin, ProxyServer
from qproxy.wire.errors import UpstreamError
from qproxy.wire.http_request import HTTPRequest
from tests.defaults import transport_limits
from tests.proxies import HTTPProxy, Names, SOCKSProxy

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi"
POST = HTTPRequest("POST", "http://host.test/v1/chat?a=b", ((b"authorization", b"Bearer sk-secret"),), b"{}")


async def answer(stream):
    """Send the same response to every request."""
    try:
        while await stream.receive_some(65536):
            await stream.send_all(OK)
    except (trio.BrokenResourceError, trio.ClosedResourceError, ssl.SSLError):
        pass


def opener(nursery, handle, calls):
    """Return a function that opens memory connections to `handle`."""

    async def connect(host, port):
        calls.append((host, port))
        client_end, server_end = trio.testing.memory_stream_pair()
        nursery.start_soon(handle, server_end)
        return client_end

    return connect


async def fetch(transport, request=POST):
    async with await transport.send(request) as response:
        return response.status, await response.read(10_000)


NO_PROXY = {
    "suffix": ("test", True),
    "dotted suffix": (".test", True),
    "exact": ("host.test", True),
    "port": ("host.test:80", True),
    "other port": ("host.test:81", False),
    "star": ("*", True),
    "not a suffix": ("st.test", False),
    "network": ("10.0.0.0/8", False),
}


@pytest.mark.parametrize(("entry", "direct"), NO_PROXY.values(), ids=NO_PROXY.keys())
def test_no_proxy(entry, direct):
    """NO_PROXY matches a host by each spelling of an entry."""
    proxy = ProxySettings.for_all("http://proxy.test:3128", entry)
    assert (proxy.proxy_for(Origin.of("http://host.test/x")) is None) == direct


def test_no_proxy_for_networks_and_the_environment():
    """Addresses match networks; the customary variables are read."""
    proxy = ProxySettings.from_environment(
        {"HTTPS_PROXY": "http://u:p@proxy.test:3128", "NO_PROXY": "10.0.0.0/8, ::1"}, ""
    )
    assert proxy.proxy_for(Origin.of("https://10.1.2.3/")) is None
    assert proxy.proxy_for(Origin.of("https://[::1]:9/")) is None
    assert proxy.proxy_for(Origin.of("http://a.test/")) is None
    server = proxy.proxy_for(Origin.of("https://a.test/"))
    assert server == ProxyServer.parse("http://u:p@proxy.test:3128")
    assert "u:p" not in repr(proxy)
    assert "dTpw" not in repr(proxy)


SPELLINGS = {
    "http": ("http://p.test:3128", Origin("http", "p.test", 3128), None),
    "no scheme": ("p.test:3128", Origin("http", "p.test", 3128), None),
    "https": ("https://u:p@p.test", Origin("https", "p.test", 443), ("u", "p")),
    "socks5": ("socks5://p.test", Origin("socks5", "p.test", 1080), None),
    "socks5h": ("SOCKS5H://u%40x:p%3A@[::1]:1081/", Origin("socks5h", "::1", 1081), ("u@x", "p:")),
}


@pytest.mark.parametrize(("url", "origin", "credentials"), SPELLINGS.values(), ids=SPELLINGS.keys())
def test_a_proxy_url_is_parsed(url, origin, credentials):
    """A proxy's URL gives its scheme, host, port and credentials."""
    assert ProxyServer.parse(url) == ProxyServer(origin, credentials)


@pytest.mark.parametrize(
    "url",
    ["socks4://secret@p:1", "ftp://p", "socks5://", "http://secret@p:port", f"socks5://{'u' * 256}:secret@p"],
)
@pytest.mark.parametrize("name", ["ALL_PROXY", "all_proxy", "HTTPS_PROXY", "https_proxy", "http_proxy"])
def test_an_invalid_proxy_variable_is_named(monkeypatch, name, url):
    """The error names the variable, no setting, and not its value, which may be a secret."""
    monkeypatch.setattr(bootstrap, "proxy_environment", lambda: {name: url})
    with pytest.raises(ConfigError, match=f"^{name}: expected .*socks5") as caught:
        bootstrap.build_transport(Config())
    assert "secret" not in str(caught.value)


def test_an_invalid_proxy_setting_is_named():
    """The error names the setting if the setting is invalid."""
    with pytest.raises(ConfigError, match=r"^proxy: expected"):
        bootstrap.build_transport(Config(proxy="gopher://p"))


def test_no_proxy_of_the_settings_and_of_the_environment(monkeypatch):
    """Hosts that need no proxy may be listed in either place when the variables name the proxy."""
    variables = {"ALL_PROXY": "socks5://p.test", "NO_PROXY": "a.test"}
    monkeypatch.setattr(bootstrap, "proxy_environment", lambda: variables)
    transport = bootstrap.build_transport(Config(no_proxy="b.test"))
    ways = {host: transport.route(f"https://{host}/")[1] for host in ("a.test", "b.test", "c.test")}
    assert ways == {"a.test": None, "b.test": None, "c.test": ProxyServer.parse("socks5://p.test")}


async def test_requests_in_absolute_form(nursery):
    """A proxy forwards consecutive plain requests, knows their origin, and gets its own credentials."""
    origins: list = []
    calls: list = []
    proxy = HTTPProxy(opener(nursery, answer, origins), authorization=b"Basic dXNlcjpwYXNz")
    transport = UpstreamTransport(
        transport_limits(),
        proxies=ProxySettings.for_all("http://user:pass@proxy.test:3128", ""),
        connect=opener(nursery, proxy.handle, calls),
    )
    get = HTTPRequest("GET", "http://host.test:8080")
    assert [await fetch(transport), await fetch(transport), await fetch(transport, get)] == [(200, b"hi")] * 3
    targets = ["http://host.test/v1/chat?a=b", "http://host.test/v1/chat?a=b", "http://host.test:8080/"]
    assert [seen[1] for seen in proxy.seen] == targets
    assert [seen[2][b"host"] for seen in proxy.seen] == [b"host.test", b"host.test", b"host.test:8080"]
    assert origins == [("host.test", 80), ("host.test", 80), ("host.test", 8080)]
    assert calls == [("proxy.test", 3128)] * 2  # one connection per origin


async def test_a_tunnel_for_another_protocol(nursery):
    """Another protocol than HTTP, such as WebSocket, gets its own tunnel even if unencrypted (RFC 6455
    4.1)."""
    proxy = HTTPProxy(opener(nursery, answer, []), authorization=b"Basic dXNlcjpwYXNz")
    connect = opener(nursery, proxy.handle, [])
    transport = UpstreamTransport(
        transport_limits(),
        proxies=ProxySettings.for_all("http://user:pass@proxy.test:3128", ""),
        connect=connect,
    )
    async with transport.stream("http://host.test/realtime") as stream:
        await stream.send_all(b"hello")
        assert await stream.receive_some(1000) == OK
    ((method, target, fields),) = proxy.seen
    assert (method, target, fields[b"host"]) == ("CONNECT", "host.test:80", b"host.test:80")
    assert b"authorization" not in fields


@pytest.mark.parametrize("url", ["http://host.test/", "https://host.test/"])
async def test_a_proxy_that_rejects(nursery, url):
    """A rejection, of a request or of a tunnel, names the proxy and the host, and no credentials."""
    proxy = HTTPProxy(opener(nursery, answer, []), authorization=b"Basic other")
    transport = UpstreamTransport(
        transport_limits(),
        proxies=ProxySettings.for_all("http://user:pass@proxy.test:3128", ""),
        connect=opener(nursery, proxy.handle, []),
    )
    with pytest.raises(UpstreamError, match=r"proxy\.test refused .* host\.test \(407\)") as caught:
        await fetch(transport, HTTPRequest("GET", url))
    assert "pass" not in caught.value.message
    assert transport.statistics().open == 0


async def test_a_407_without_a_proxy_is_passed_on(nursery):
    """Without a proxy, a 407 response is passed on unchanged."""

    async def respond(stream):
        await stream.receive_some(65536)
        await stream.send_all(b"HTTP/1.1 407 Odd\r\ncontent-length: 0\r\n\r\n")

    transport = UpstreamTransport(transport_limits(), connect=opener(nursery, respond, []))
    assert await fetch(transport) == (407, b"")


SOCKS_CASES = {
    "a name": ("socks5h://p.test", "http://host.test/", (3, "host.test", 80)),
    "a name in another script": ("socks5h://p.test", "http://bücher.test/", (3, "xn--bcher-kva.test", 80)),
    "a name that is looked up here": ("socks5://p.test", "http://host.test:81/", (1, "192.0.2.7", 81)),
    "a name with one address": ("socks5://p.test", "http://six.test/", (4, "2001:db8::7", 80)),
    "an address": ("socks5h://p.test", "http://192.0.2.9/", (1, "192.0.2.9", 80)),
    "an IPv6 address": ("socks5h://p.test", "http://[2001:db8::9]/", (4, "2001:db8::9", 80)),
}
BOUND = {
    "IPv4": b"\x01\x00\x00\x00\x00\x00\x00",
    "IPv6": b"\x04" + bytes(18),
    "name": b"\x03\x02ab\x00\x50",
}


@pytest.mark.parametrize("bound", BOUND.values(), ids=BOUND.keys())
@pytest.mark.parametrize(("proxy", "url", "destination"), SOCKS_CASES.values(), ids=SOCKS_CASES.keys())
async def test_requests_through_socks(nursery, proxy, url, destination, bound):
    """The SOCKS request has the host's name (socks5h) or address (socks5), and the HTTP request is
    unchanged."""
    trio.socket.set_custom_hostname_resolver(
        Names(**{"host.test": ["2001:db8::1", "192.0.2.7"], "six.test": ["2001:db8::7"]})
    )
    origins: list = []
    calls: list = []
    server = SOCKSProxy(opener(nursery, answer, origins), bound=bound)
    transport = UpstreamTransport(
        transport_limits(),
        proxies=ProxySettings.for_all(proxy, ""),
        connect=opener(nursery, server.handle, calls),
    )
    request = HTTPRequest("GET", url)
    assert [await fetch(transport, request) for _ in range(2)] == [(200, b"hi")] * 2
    assert server.destinations == [destination]
    assert origins == [destination[1:]]
    assert calls == [("p.test", 1080)]


async def test_socks_with_a_password(nursery):
    """A proxy that requires credentials gets those of its URL (RFC 1929)."""
    server = SOCKSProxy(opener(nursery, answer, []), credentials=("üser", "pa:ss"))
    transport = UpstreamTransport(
        transport_limits(),
        proxies=ProxySettings.from_environment({"ALL_PROXY": "socks5h://%C3%BCser:pa%3Ass@p.test"}, ""),
        connect=opener(nursery, server.handle, []),
    )
    assert await fetch(transport) == (200, b"hi")
    assert server.shown == [("üser", "pa:ss")]


async def test_socks_credentials_that_are_not_required(nursery):
    """A proxy that requires no credentials gets none."""
    server = SOCKSProxy(opener(nursery, answer, []))
    connect = opener(nursery, server.handle, [])
    transport = UpstreamTransport(
        transport_limits(), proxies=ProxySettings.for_all("socks5h://u:p@p.test", ""), connect=connect
    )
    assert await fetch(transport) == (200, b"hi")
    assert not server.shown


SOCKS_REFUSALS = {
    "rules": ({"reply": 2}, "socks5h://p.test", "not allowed by its rules"),
    "the host's refusal": ({"reply": 5}, "socks5h://p.test", "connection refused"),
    "a reply to come": ({"reply": 99}, "socks5h://p.test", "reply 99"),
    "no password": (
        {"credentials": ("u", "p")},
        "socks5h://p.test",
        "it requires a user name and a password",
    ),
    "another password": ({"credentials": ("u", "p")}, "socks5h://u:secret@p.test", "it rejects"),
}


@pytest.mark.parametrize(("settings", "url", "pattern"), SOCKS_REFUSALS.values(), ids=SOCKS_REFUSALS.keys())
async def test_socks_rejections(nursery, settings, url, pattern):
    """A rejection names its reason, the proxy and the host, and leaves nothing open."""
    server = SOCKSProxy(opener(nursery, answer, []), **settings)
    transport = UpstreamTransport(
        transport_limits(), proxies=ProxySettings.for_all(url, ""), connect=opener(nursery, server.handle, [])
    )
    with pytest.raises(UpstreamError, match=rf"proxy p\.test refused .* host\.test \({pattern}") as caught:
        await fetch(transport)
    assert "secret" not in caught.value.message
    assert transport.statistics().open == 0


NO_SOCKS = {
    "HTTP": (b"HTTP/1.1 400 Bad Request\r\n\r\n", "it is not a SOCKS 5 proxy"),
    "SOCKS 4": (b"\x00\x5b\x00\x00\x00\x00\x00\x00", "it is not a SOCKS 5 proxy"),
    "nothing": (b"", "it closed the connection"),
    "half a reply": (b"\x05\x00\x05\x00\x00", "it closed the connection"),
    "a reply of another version": (b"\x05\x00\x04\x00\x00\x01", "it is not a SOCKS 5 proxy"),
    "an address of no kind": (b"\x05\x00\x05\x00\x00\x09", "it is not a SOCKS 5 proxy"),
}


@pytest.mark.parametrize(("data", "pattern"), NO_SOCKS.values(), ids=NO_SOCKS.keys())
async def test_a_server_without_socks(nursery, data, pattern):
    """Another service at the proxy's address is an error with its reason."""

    async def respond(stream):
        await stream.send_all(data)
        await stream.send_eof()

    connect = opener(nursery, respond, [])
    transport = UpstreamTransport(
        transport_limits(), proxies=ProxySettings.for_all("socks5h://p.test", ""), connect=connect
    )
    with pytest.raises(UpstreamError, match=pattern):
        await fetch(transport)
    assert transport.statistics().open == 0


@given(st.binary(max_size=600), st.none() | st.tuples(st.text("u", min_size=1), st.text("p")))
def test_any_bytes_of_a_proxy(data, credentials):
    """Any bytes from a proxy end the handshake, in success or in its own error."""
    steps, at = socks.handshake("host.test", 80, credentials), 0
    try:
        _, size = next(steps)
        while at + size <= len(data):
            _, size = steps.send(data[at : (at := at + size)])
            assert size > 0
    except (StopIteration, socks.SOCKSError):
        pass


async def test_a_name_that_is_too_long_for_socks(nursery):
    """A name of more than 255 bytes is an error; nothing is sent."""
    server = SOCKSProxy(opener(nursery, answer, []))
    connect = opener(nursery, server.handle, [])
    transport = UpstreamTransport(
        transport_limits(), proxies=ProxySettings.for_all("socks5h://p.test", ""), connect=connect
    )
    with pytest.raises(UpstreamError, match="too long"):
        await fetch(transport, HTTPRequest("GET", f"http://{'.'.join(['a' * 60] * 5)}/"))
    assert not server.destinations


async def test_a_silent_proxy(nursery, autojump_clock):
    """connect_timeout bounds everything that a proxy does before the connection is established."""

    async def silent(stream):
        await trio.sleep_forever()

    connect = opener(nursery, silent, [])
    for url in ("socks5h://p.test", "http://p.test"):
        transport = UpstreamTransport(
            transport_limits(connect_timeout=3), proxies=ProxySettings.for_all(url, ""), connect=connect
        )
        start = trio.current_time()
        with pytest.raises(UpstreamError, match="within 3 s"):
            await fetch(transport, HTTPRequest("GET", "https://host.test/"))
        assert trio.current_time() - start == 3
        assert transport.statistics().open == 0
    nursery.cancel_scope.cancel()


async def test_an_unknown_name(nursery):
    """A name that cannot be resolved is an error that names it."""
    trio.socket.set_custom_hostname_resolver(Names())
    connect = opener(nursery, SOCKSProxy(trio.open_tcp_stream).handle, [])
    transport = UpstreamTransport(
        transport_limits(), proxies=ProxySettings.for_all("socks5://p.test", ""), connect=connect
    )
    with pytest.raises(UpstreamError, match=r"Cannot connect to host\.test: .*not known"):
        await fetch(transport)


@asynccontextmanager
async def listening(handle, context=None):
    """Yield the port of a server on loopback."""
    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        served = listener if context is None else trio.SSLListener(listener, context, https_compatible=True)
        nursery.start_soon(partial(trio.serve_listeners, handle, [served]))
        yield listener.socket.getsockname()[1]
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("kind", "scheme"),
    [(SOCKSProxy, "socks5h"), (SOCKSProxy, "socks5"), (HTTPProxy, "http")],
    ids=["socks5h", "socks5", "connect"],
)
async def test_tls_via_a_proxy(kind, scheme):
    """Over sockets, the proxy sees encrypted bytes only, and the certificate is the host's."""
    authority = trustme.CA()
    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(server_context)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    proxy = kind(trio.open_tcp_stream)
    async with listening(answer, server_context) as port, listening(proxy.handle) as proxy_port:
        transport = UpstreamTransport(
            transport_limits(),
            proxies=ProxySettings.for_all(f"{scheme}://127.0.0.1:{proxy_port}", ""),
            ssl_context=trusting,
        )
        url = f"https://localhost:{port}/"
        assert await fetch(transport, HTTPRequest("GET", url)) == (200, b"hi")
        assert await fetch(transport, HTTPRequest("POST", url, (), b"x" * 200_000)) == (200, b"hi")
        assert transport.statistics().created == 1
        await transport.aclose()


ROUTES = {
    "forwarded": ("http://p.test:3128", {"proxy": "p.test:3128", "connection": "p.test:3128"}),
    "SOCKS": ("socks5h://p.test", {"proxy": "p.test:1080", "connection": "host.test:80"}),
    "SOCKS by address": (
        "socks5://p.test",
        {"proxy": "p.test:1080", "DNS": "192.0.2.7", "connection": "host.test:80"},
    ),
}


@pytest.mark.parametrize(("url", "steps"), ROUTES.values(), ids=ROUTES.keys())
async def test_the_route_that_qproxy_check_reports(nursery, url, steps):
    """`qproxy check` resolves the same names as a request, and reports each peer."""
    trio.socket.set_custom_hostname_resolver(Names(**{"host.test": ["192.0.2.7"]}))
    server = SOCKSProxy(opener(nursery, answer, []))
    transport = UpstreamTransport(
        transport_limits(), proxies=ProxySettings.for_all(url, ""), connect=opener(nursery, server.handle, [])
    )
    found = await network.check_route("http://host.test/v1", transport, "x", 0.0)
    assert [finding.name for finding in found] == list(steps)
    assert all(finding.state == "ok" for finding in found)
    assert all(word in finding.message for finding, word in zip(found, steps.values(), strict=True))
