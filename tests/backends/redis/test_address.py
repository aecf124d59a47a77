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


@pytest.mark.parametrize("url", [
    "h:6379", "http://secret@h", "redis://", "unix://", "redis://h/x", "redis://h:99999", "redis://[::1",
    "redis+sentinel://secret@h/name", "redis+cluster://secret@h", "redis://h/٣",
])  # fmt: skip
def test_other_urls_are_rejected(url):
    """With a reason that does not repeat them."""
    with pytest.raises(InvalidAddress) as error:
        parse_address(url)
    assert "secret" not in str(error.value)
