"""The address of the engine: the setting `shared_state`.

`redis://` is TCP, `rediss://` is TLS whose certificate is verified, `unix://` is a local socket.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

import trio

PORT = 6379
SCHEMES = ("redis", "rediss", "unix")


class InvalidAddress(ValueError):
    """The setting `shared_state` is not a URL that is supported; the message does not contain it."""


@dataclass(frozen=True, slots=True)
class Address:
    """One server; `str` and `repr` show no password."""

    host: str
    port: int
    path: str = ""
    """Of a Unix socket, which has no host and port; otherwise empty."""
    tls: bool = False
    database: int = 0
    user: str = ""
    password: str = field(default="", repr=False)

    def __str__(self) -> str:
        if self.path:
            return f"unix://{self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'rediss' if self.tls else 'redis'}://{host}:{self.port}/{self.database}"

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
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise InvalidAddress("is not a valid URL") from None
    if parts.scheme not in SCHEMES:
        supported = "redis://, rediss:// or unix:// (Sentinel and Cluster are not supported)"
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


def _database(parts: SplitResult) -> int:
    """Return the number of the database: the path, or `db` of the query for a Unix socket."""
    text = parts.path.strip("/") if parts.scheme != "unix" else parse_qs(parts.query).get("db", [""])[0]
    if not text:
        return 0
    if not (text.isascii() and text.isdigit() and len(text) < 6):
        raise InvalidAddress("names a database that is no number")
    return int(text)
