"""Content codings of request bodies: zstd, gzip and deflate, decoded within a limit.

RFC 9110 8.4.1 and 12.5.3, RFC 8878 (zstd), RFC 1952 (gzip), RFC 1950 and 1951 (deflate).
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Callable, Iterable
from typing import Any

from qproxy.wire.errors import RequestError

MAX_FRAMES = 16
"""Frames (zstd) or members (gzip) of one body: each costs a copy of what follows it."""
MIN_WINDOW_LOG = 23
"""Any decoder accepts zstd windows of 8 MiB (RFC 9659 3)."""


class DecodedBodyTooLarge(ValueError):
    """A decoded body exceeds its limit."""


class CorruptBody(ValueError):
    """A body does not have the format of its Content-Encoding, or is truncated."""


def parse_coding(values: Iterable[str]) -> str:
    """Return the coding of Content-Encoding headers, "" for none.

    Raises RequestError with status 415 for an unsupported one, and for several that are applied one after the
    other.
    """
    names = [name.strip().lower() for value in values for name in value.split(",")]
    coding = ", ".join(name for name in names if name not in ("", "identity"))
    if not coding or coding in _DECODERS:
        return coding
    raise RequestError(
        f"Unsupported Content-Encoding '{coding[:100]}': use {ACCEPT_ENCODING}, or send the body "
        "uncompressed.",
        status=415,
        code="unsupported_content_encoding",
    )


def decode(data: bytes, coding: str, limit: int) -> bytes:
    """Return a decoded body of at most `limit` bytes. Raises DecodedBodyTooLarge or CorruptBody."""
    return _DECODERS[coding](data, limit)


def _decode_zstd(data: bytes, limit: int) -> bytes:
    zstd = _import_zstd()
    window_log = min(max(MIN_WINDOW_LOG, (limit - 1).bit_length()), 31)
    options = {zstd.DecompressionParameter.window_log_max: window_log}
    return _decode_frames(data, limit, lambda: zstd.ZstdDecompressor(options=options), zstd.ZstdError)


def _decode_gzip(data: bytes, limit: int) -> bytes:
    return _decode_frames(data, limit, lambda: zlib.decompressobj(16 + zlib.MAX_WBITS), zlib.error)


def _decode_deflate(data: bytes, limit: int) -> bytes:
    """Decode zlib's format, or what follows its header, which many clients send instead."""
    has_header = len(data) > 1 and data[0] & 15 == zlib.DEFLATED and not int.from_bytes(data[:2], "big") % 31
    bits = zlib.MAX_WBITS if has_header else -zlib.MAX_WBITS
    return _decode_frames(data, limit, lambda: zlib.decompressobj(bits), zlib.error)


def _decode_frames(data: bytes, limit: int, decompressor: Callable[[], Any], error: type[Exception]) -> bytes:
    decoded: list[bytes] = []
    for _ in range(MAX_FRAMES):
        frame = decompressor()
        try:
            decoded.append(frame.decompress(data, limit + 1))
        except error as fault:
            raise CorruptBody(str(fault)) from None
        limit -= len(decoded[-1])
        if limit < 0:
            raise DecodedBodyTooLarge
        if not frame.eof:
            raise CorruptBody("it is truncated")
        data = frame.unused_data
        if not data:
            return b"".join(decoded)
    raise CorruptBody(f"it has more than {MAX_FRAMES} frames")


def _import_zstd() -> Any:
    """Return the module, which most servers never need."""
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
    return zstd


_DECODERS = {
    "zstd": _decode_zstd, "gzip": _decode_gzip, "x-gzip": _decode_gzip, "deflate": _decode_deflate,
}  # fmt: skip
ACCEPT_ENCODING = "zstd, gzip, deflate"
"""The header of a 415 for another coding (RFC 9110 15.5.16)."""
