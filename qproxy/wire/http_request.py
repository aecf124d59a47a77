"""The HTTP request that `dialects` build and `transport` sends."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

Headers: TypeAlias = tuple[tuple[bytes, bytes], ...]
"""Headers in order; names in lower case."""


@dataclass(frozen=True, slots=True)
class HTTPRequest:
    """A request with its whole body; the transport adds `host`, `content-length` and `user-agent`."""

    method: str
    url: str
    """Absolute: `https://host[:port]/path?query`."""
    headers: Headers = field(default=(), repr=False)  # it holds the account's token
    body: bytes = field(default=b"", repr=False)  # it holds the client's prompt
