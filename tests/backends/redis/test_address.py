"""URLs of the setting `shared_state`."""

import pytest

from qproxy.backends.redis.address import Address, InvalidAddress, parse_address


@pytest.mark.parametrize(("url", "address"), [
    ("redis://h", Address("h", 6379)),
    ("redis://h:7000/2", Address("h", 7000, database=2)),
    ("redis://:p%40ss@h", Address("h", 6379, password="p@ss")),
    ("rediss://me:secret@v.org:6380", Address("v.org", 6380, tls=True, user="me", password="secret")),
    ("redis://[::1]:6379", Address("::1", 6379)),
    ("unix:///run/valkey.sock", Address("", 0, "/run/valkey.sock")),
    ("unix://:pw@/run/valkey.sock?db=4", Address("", 0, "/run/valkey.sock", database=4, password="pw")),
])  # fmt: skip
def test_a_url_names_a_server(url, address):
    """Host, port, database, user and password, or the path of a Unix socket."""
    assert parse_address(url) == address
    assert not address.password or address.password not in f"{address} {address!r}"


GROUP = (("a", 26379), ("::1", 7))


@pytest.mark.parametrize(("url", "address", "text"), [
    ("redis+sentinel://a,[::1]:7/main",
     Address("a", 26379, kind="sentinel", hosts=GROUP, service="main"), "redis+sentinel://a:26379,[::1]:7/main"),
    ("rediss+sentinel://me:p%2Cw@a/main?db=2",
     Address("a", 26379, "", True, 2, "me", "p,w", "sentinel", (("a", 26379),), "main"),
     "rediss+sentinel://a:26379/main"),
    ("redis+cluster://:pw@a:1,b",
     Address("a", 1, password="pw", kind="cluster", hosts=(("a", 1), ("b", 6379))), "redis+cluster://a:1,b:6379"),
])  # fmt: skip
def test_a_url_names_a_group_of_servers(url, address, text):
    """Servers of Sentinel with the primary's name, or members of a cluster."""
    assert parse_address(url) == address
    assert str(address) == text


@pytest.mark.parametrize("url", [
    "h:6379", "http://secret@h", "redis://", "unix://", "redis://h/x", "redis://h:99999", "redis://[::1",
    "redis+sentinel://secret@h", "redis+cluster://secret@h/2", "redis+cluster://:secret@h,", "redis://h/٣",
    "redis+sentinel://secret@h:x/m", "redis+swarm://secret@h", "unix+cluster://secret@h",
])  # fmt: skip
def test_other_urls_are_rejected(url):
    """With a reason that does not repeat them."""
    with pytest.raises(InvalidAddress) as error:
        parse_address(url)
    assert "secret" not in str(error.value)
