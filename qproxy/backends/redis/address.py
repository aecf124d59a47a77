"""The address of the engine: the setting `shared_state`.

`redis://` is TCP, `rediss://` is TLS whose certificate is verified, `unix://` is a local socket.
`redis+sentinel://` names servers of Sentinel and the primary's name there, `redis+cluster://` some members of
a cluster; `rediss+` is TLS for all of them.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field, replace
from typing import Literal
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

import trio

PORT = 6379
SENTINEL_PORT = 26379
SCHEMES = ("redis", "rediss", "unix")
GROUPS: dict[str, Literal["sentinel", "cluster"]] = {"+sentinel": "sentinel", "+cluster": "cluster"}


class InvalidAddress(ValueError):
    """The setting `shared_state` is not a URL that is supported; the message does not contain it."""


@dataclass(frozen=True, slots=True)
class Address:
    """One server, or a group of servers; `str` and `repr` show no password."""

    host: str
    port: int
    path: str = ""
    """Of a Unix socket, which has no host and port; otherwise empty."""
    tls: bool = False
    database: int = 0
    user: str = ""
    password: str = field(default="", repr=False)
    kind: Literal["server", "sentinel", "cluster"] = "server"
    """What the hosts are: the server, those that know the primary's address, or members of a cluster."""
    hosts: tuple[tuple[str, int], ...] = ()
    """Of a group; `host` and `port` are those of the first."""
    service: str = ""
    """The name that Sentinel knows the primary by."""

    def __str__(self) -> str:
        if self.path:
            return f"unix://{self.path}"
        scheme = "rediss" if self.tls else "redis"
        if not self.hosts:
            return f"{scheme}://{_authority(self.host, self.port)}/{self.database}"
        hosts = ",".join(_authority(host, port) for host, port in self.hosts)
        return f"{scheme}+{self.kind}://{hosts}/{self.service}".rstrip("/")

    @property
    def is_cluster(self) -> bool:
        """Return whether the server is, or the servers are, of a cluster."""
        return self.kind == "cluster"

    @property
    def is_private(self) -> bool:
        """Return whether no network has what is sent in the clear."""
        return self.tls or bool(self.path) or self.host in ("localhost", "127.0.0.1", "::1")

    def at(self, host: str, port: int) -> Address:
        """Return the address of one server of the group, with the group's credentials."""
        return replace(self, host=host, port=port, hosts=(), service="")

    async def open(self, context: ssl.SSLContext | None) -> trio.abc.Stream:
        """Return a connected stream. Raises OSError or trio.BrokenResourceError."""
        if self.path:
            return await trio.open_unix_socket(self.path)
        stream = await trio.open_tcp_stream(self.host, self.port)
        if not self.tls:
            return stream
        context = context or ssl.create_default_context()
        secured = trio.SSLStream(stream, context, server_hostname=self.host)
        try:
            await secured.do_handshake()
        except BaseException:
            await trio.aclose_forcefully(stream)
            raise
        return secured


def parse_address(url: str) -> Address:
    """Return the address that a URL names. Raises InvalidAddress."""
    scheme, _, rest = url.partition("://")
    for suffix, kind in GROUPS.items():
        if scheme in ("redis" + suffix, "rediss" + suffix):
            return _parse_group(scheme.removesuffix(suffix), kind, rest)
    return _parse_server(url)


def _parse_server(url: str) -> Address:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise InvalidAddress("is not a valid URL") from None
    if parts.scheme not in SCHEMES:
        supported = "redis://, rediss://, unix://, redis+sentinel:// or redis+cluster:// (TLS: rediss+)"
        raise InvalidAddress(f"must begin with {supported}")
    user, password, database = unquote(parts.username or ""), unquote(parts.password or ""), _database(parts)
    if parts.scheme == "unix":
        if not parts.path.strip("/"):
            raise InvalidAddress("names no path of a Unix socket")
        return Address("", 0, unquote(parts.path), database=database, user=user, password=password)
    if not parts.hostname:
        raise InvalidAddress("names no host")
    tls = parts.scheme == "rediss"
    return Address(parts.hostname, port or PORT, "", tls, database, user, password)


def _parse_group(scheme: str, kind: Literal["sentinel", "cluster"], rest: str) -> Address:
    """Return the address of several servers: `user:password@host:port,host/NAME?db=N`."""
    authority, _, tail = rest.partition("/")
    credentials, at, names = authority.rpartition("@")
    port = SENTINEL_PORT if kind == "sentinel" else PORT
    servers = [_parse_server(f"{scheme}://{credentials}{at}{name}") for name in names.split(",")]
    ports = [urlsplit(f"//{name}").port or port for name in names.split(",")]
    hosts = tuple((server.host, number) for server, number in zip(servers, ports, strict=True))
    parts = urlsplit(f"unix:///{tail}")
    service, database = unquote(parts.path.strip("/")), _database(parts)
    if kind == "sentinel" and not service:
        raise InvalidAddress("names no primary: redis+sentinel://host,host/NAME")
    if kind == "cluster" and (service or database):
        raise InvalidAddress("names a database, which a cluster does not have")
    return replace(servers[0], port=ports[0], database=database, kind=kind, hosts=hosts, service=service)


def _authority(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _database(parts: SplitResult) -> int:
    """Return the number of the database: the path, or `db` of the query for a Unix socket."""
    text = parts.path.strip("/") if parts.scheme != "unix" else parse_qs(parts.query).get("db", [""])[0]
    if not text:
        return 0
    if not (text.isascii() and text.isdigit() and len(text) < 6):
        raise InvalidAddress("names a database that is no number")
    return int(text)
