"""The client's address: only configured proxies are trusted, each only for the entry that it added."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qproxy.access.client_address import MAX_HOPS, UNIX, TrustedProxies, parse_address, subscriber_prefix
from qproxy.bootstrap.app import build_server
from qproxy.config import Config
from qproxy.config.accounts import ConfigError
from tests.examples import examples
from tests.helpers import accounts

XFF, FORWARDED = b"X-Forwarded-For", b"Forwarded"
PROXIES = TrustedProxies(["10.0.0.0/8", "2001:db8:1::/48", "unix"])

CHAINS = {
    "no field": ("10.0.0.1", [], "10.0.0.1"),
    "a stranger's own field": ("203.0.113.7", [(XFF, b"198.51.100.1")], "203.0.113.7"),
    "one hop": ("10.0.0.1", [(XFF, b"198.51.100.1")], "198.51.100.1"),
    "what the client invented": ("10.0.0.1", [(XFF, b"127.0.0.1, 198.51.100.1")], "198.51.100.1"),
    "two proxies": ("10.0.0.1", [(XFF, b"127.0.0.1, 198.51.100.1, 10.0.0.2")], "198.51.100.1"),
    "several fields": ("10.0.0.1", [(XFF, b"127.0.0.1"), (XFF, b"198.51.100.1")], "198.51.100.1"),
    "trusted ones only": ("10.0.0.1", [(XFF, b"10.0.0.3, 10.0.0.2")], "10.0.0.3"),
    "a port": ("10.0.0.1", [(XFF, b"198.51.100.1:4711")], "198.51.100.1"),
    "IPv6": ("10.0.0.1", [(XFF, b"2001:DB8::1")], "2001:db8::1"),
    "IPv6 in brackets with a port": ("10.0.0.1", [(XFF, b"[2001:db8::1]:4711")], "2001:db8::1"),
    "IPv4 in IPv6": ("::ffff:10.0.0.1", [(XFF, b"::ffff:198.51.100.1")], "198.51.100.1"),
    "an IPv6 proxy": ("2001:db8:1::5", [(XFF, b"198.51.100.1")], "198.51.100.1"),
    "no address": ("10.0.0.1", [(XFF, b"198.51.100.1, unknown")], "10.0.0.1"),
    "nothing": ("10.0.0.1", [(XFF, b"")], "10.0.0.1"),
    "bytes": ("10.0.0.1", [(XFF, b"\xff\x00")], "10.0.0.1"),
    "Forwarded": ("10.0.0.1", [(FORWARDED, b"for=198.51.100.1;proto=https;by=10.0.0.1")], "198.51.100.1"),
    "Forwarded, quoted": ("10.0.0.1", [(FORWARDED, b'proto=http; For="[2001:db8::1]:4711"')], "2001:db8::1"),
    "Forwarded, hidden": ("10.0.0.1", [(FORWARDED, b"for=198.51.100.1, for=_hidden")], "10.0.0.1"),
    "Forwarded, invented": ("10.0.0.1", [(FORWARDED, b'for="x, for=198.51.100.1')], "198.51.100.1"),
    "both agree": ("10.0.0.1", [(XFF, b"198.51.100.1"), (FORWARDED, b"for=198.51.100.1")], "198.51.100.1"),
    "one of both is the client's": (
        "10.0.0.1", [(XFF, b"198.51.100.1"), (FORWARDED, b"for=127.0.0.1")], "10.0.0.1",
    ),
    "a Unix socket": (None, [(XFF, b"198.51.100.1")], "198.51.100.1"),
    "a Unix socket without a field": (None, [], UNIX),
}  # fmt: skip


@pytest.mark.parametrize(("peer", "headers", "client"), CHAINS.values(), ids=CHAINS)
def test_the_client_is_the_last_address_that_is_no_trusted_proxy(peer, headers, client):
    """The entry that a trusted proxy added last decides; entries left of it are ignored."""
    assert PROXIES.client_address(peer, headers) == client


@pytest.mark.parametrize(("peer", "headers", "client"), CHAINS.values(), ids=CHAINS)
def test_without_proxies_the_peer_is_the_client(peer, headers, client):
    """No header changes the address."""
    assert TrustedProxies(()).client_address(peer, headers) == (UNIX if peer is None else peer)


@examples(100)
@given(st.lists(st.sampled_from(["203.0.113.9", "10.0.0.9", "unknown", "x" * 100, ""]), max_size=80))
def test_forged_entries_do_not_hide_a_client(forged):
    """The proxy's own entry decides whatever a client wrote before it, and a bounded number of entries is
    parsed."""
    value = ", ".join([*forged, "198.51.100.1"]).encode()
    assert PROXIES.client_address("10.0.0.1", [(XFF, value)]) == "198.51.100.1"
    endless = ",".join(["198.51.100.1", *["10.0.0.2"] * (MAX_HOPS + 5)]).encode()
    assert PROXIES.client_address("10.0.0.1", [(XFF, endless)]) == "10.0.0.2"


@examples(100)
@given(st.text(max_size=80))
def test_parsing_any_text_raises_nothing(text):
    """Any text parses to an address or to None."""
    address = parse_address(text)
    assert address is None or parse_address(str(address)) == address


def test_addresses_of_one_subscriber_share_a_prefix():
    """IPv6 counts by /64, IPv4 by address, including IPv4-mapped IPv6."""
    assert (
        subscriber_prefix("2001:db8:0:1::1")
        == subscriber_prefix("2001:db8:0:1:ffff::2")
        == "2001:db8:0:1::/64"
    )
    assert subscriber_prefix("2001:db8:0:2::1") != subscriber_prefix("2001:db8:0:1::1")
    assert subscriber_prefix("::ffff:192.0.2.1") == subscriber_prefix("192.0.2.1") == "192.0.2.1"
    assert subscriber_prefix("192.0.2.2") != subscriber_prefix("192.0.2.1")
    assert subscriber_prefix(UNIX) == UNIX


@pytest.mark.parametrize("entry", ["proxy.test", "10.0.0.0/40", "", "*", "Unix"])
def test_rejects_an_entry_that_is_no_network(entry):
    """A host name in trusted_proxies is rejected at startup; the error names valid entries."""
    with pytest.raises(ConfigError, match=r"trusted_proxies: .*Use addresses"):
        build_server(Config(accounts=accounts("one"), trusted_proxies=[entry]))
