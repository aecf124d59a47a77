"""Hosts that strangers name are connected to at public addresses alone, which are resolved once."""

import socket

import pytest
import trio
import trio.abc

from qproxy.transport.public_hosts import connect_public, is_public

ADDRESSES = {
    "8.8.8.8": True,
    "2606:4700::1111": True,
    "127.0.0.1": False,
    "10.1.2.3": False,
    "172.16.0.1": False,
    "192.168.1.1": False,
    "169.254.169.254": False,
    "100.64.0.1": False,
    "0.0.0.0": False,
    "224.0.0.1": False,
    "255.255.255.255": False,
    "192.0.2.1": False,
    "::1": False,
    "::": False,
    "fe80::1%eth0": False,
    "fd00::1": False,
    "ff02::1": False,
    "::ffff:127.0.0.1": False,
    "::ffff:8.8.8.8": True,
    "2002:7f00:1::": False,
    "64:ff9b::a00:1": False,
    "64:ff9b::808:808": True,
    "localhost": False,
    "": False,
}


@pytest.mark.parametrize(("address", "public"), ADDRESSES.items())
def test_addresses(address, public):
    """Special addresses are not public, also within IPv6 addresses that stand for IPv4 ones."""
    assert is_public(address) is public


class Resolver(trio.abc.HostnameResolver):
    """Answers with the next of some lists of addresses."""

    def __init__(self, *answers):
        self.answers = list(answers)

    async def getaddrinfo(self, host, port, family=0, type=0, proto=0, flags=0):
        found = self.answers.pop(0)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in found]

    async def getnameinfo(self, sockaddr, flags):
        raise NotImplementedError


@pytest.mark.parametrize("found", [["127.0.0.1"], ["8.8.8.8", "10.0.0.1"], []])
async def test_a_name_of_a_private_address(found):
    """A host with any private address is refused before a connection is made."""
    trio.socket.set_custom_hostname_resolver(Resolver(found))
    with pytest.raises(OSError, match="client_mcp_private"):
        await connect_public("rebound.test", 443)


async def test_a_name_is_resolved_once():
    """The connection is made to the address that was checked; a second answer is never asked for."""
    opened = []

    async def open_stream(host, port):
        opened.append((host, port))
        raise OSError("nobody is there")

    resolver = Resolver(["8.8.8.8", "8.8.4.4"], ["127.0.0.1"])
    trio.socket.set_custom_hostname_resolver(resolver)
    with pytest.raises(OSError, match="nobody"):
        await connect_public("rebound.test", 443, open_stream)
    assert opened == [("8.8.8.8", 443), ("8.8.4.4", 443)]
    assert resolver.answers == [["127.0.0.1"]]
