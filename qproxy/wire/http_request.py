"""The HTTP request that `dialects` build and `transport` sends."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import TypeAlias

Headers: TypeAlias = tuple[tuple[bytes, bytes], ...]
"""Headers in order; names in lower case."""


class Upload(ABC):
    """A body that is read while it is sent, and again for another attempt."""

    length: int
    """Bytes of the whole body."""

    @abstractmethod
    def chunks(self) -> AsyncGenerator[bytes, None]:
        """Yield the body from its start."""


@dataclass(frozen=True, slots=True)
class HTTPRequest:
    """A request with its body; the transport adds `host`, `content-length` and `user-agent`."""

    method: str
    url: str
    """Absolute: `https://host[:port]/path?query`."""
    headers: Headers = field(default=(), repr=False)  # it holds the account's token
    body: bytes = field(default=b"", repr=False)  # it holds the client's prompt
    upload: Upload | None = field(default=None, repr=False)
    """The body instead of `body`, if it is not held in memory."""
    first_byte_timeout: tuple[float, str] | None = None
    """Seconds until its response starts, and the name of their setting, instead of the transport's."""

    @property
    def content_length(self) -> int:
        """Return the number of bytes of the body."""
        return len(self.body) if self.upload is None else self.upload.length
