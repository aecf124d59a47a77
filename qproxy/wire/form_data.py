"""A multipart form (RFC 7578): its parts, and its bytes as they are sent.

A file is never in memory as a whole: `FormBody` yields its pieces between the heads of the parts.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import sha256

from qproxy.wire.http_request import Upload

_ESCAPES = {ord('"'): "%22", ord("\r"): "%0D", ord("\n"): "%0A"}
"""Characters of names that browsers escape (WHATWG HTML, multipart/form-data encoding)."""


@dataclass(frozen=True, slots=True)
class FormPart:
    """A field, or a file if it has a filename."""

    name: str
    value: str | bytes | Upload = field(repr=False)
    filename: str | None = None
    content_type: str | None = None

    @property
    def length(self) -> int:
        """Return the number of bytes of the value."""
        return self.value.length if isinstance(self.value, Upload) else len(self._data())

    def head(self) -> bytes:
        """Return the header section of the part, with the blank line after it."""
        text = f'Content-Disposition: form-data; name="{self.name.translate(_ESCAPES)}"'
        if self.filename is not None:
            text += f'; filename="{self.filename.translate(_ESCAPES)}"'
        if self.content_type is not None:
            text += f"\r\nContent-Type: {self.content_type}"
        return f"{text}\r\n\r\n".encode()

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """Yield the value from its start."""
        if isinstance(self.value, Upload):
            async for chunk in self.value.chunks():
                yield chunk
        else:
            yield self._data()

    def _data(self) -> bytes:
        assert not isinstance(self.value, Upload)
        return self.value.encode() if isinstance(self.value, str) else self.value


class FormBody(Upload):
    """The bytes of a form, in pieces."""

    def __init__(self, parts: Iterable[FormPart], boundary: str) -> None:
        """`boundary` must not occur in the values: take a random one (`boundary_of`)."""
        self.parts = tuple(parts)
        self._delimiter = f"--{boundary}\r\n".encode()
        self._end = f"--{boundary}--\r\n".encode()
        self.content_type = f"multipart/form-data; boundary={boundary}"
        self.length = sum(len(piece) for piece in self._heads()) + sum(part.length for part in self.parts)

    def __repr__(self) -> str:
        return f"<FormBody of {len(self.parts)} parts, {self.length} bytes>"

    def _heads(self) -> Iterator[bytes]:
        for part in self.parts:
            yield self._delimiter + part.head() + b"\r\n"
        yield self._end

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """Yield the form from its start."""
        for part in self.parts:
            yield self._delimiter + part.head()
            async for chunk in part.chunks():
                yield chunk
            yield b"\r\n"
        yield self._end


def boundary_of(seed: str) -> str:
    """Return a boundary made of a random seed, such as the request's id."""
    return f"qproxy-{sha256(seed.encode()).hexdigest()[:32]}"
