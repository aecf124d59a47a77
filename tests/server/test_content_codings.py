"""Compressed request bodies are decoded, and hostile ones have a bounded cost."""

import contextlib
import gzip
import json
import sys
import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qproxy.server import content_codings
from qproxy.server.content_codings import CorruptBody, DecodedBodyTooLarge, decode, parse_coding
from qproxy.wire.errors import RequestError
from tests.helpers import HELLO, world

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

BODY = json.dumps(HELLO).encode()
LIMIT = 100_000


def raw_deflate(data):
    compressor = zlib.compressobj(wbits=-15)
    return compressor.compress(data) + compressor.flush()


def wide_window(data):
    """Return a zstd frame without its size, with a window of 128 MiB."""
    options: dict[int, int] = {
        zstd.CompressionParameter.window_log: 27,
        zstd.CompressionParameter.content_size_flag: 0,
    }
    compressor = zstd.ZstdCompressor(options=options)
    return compressor.compress(data) + compressor.flush()


COMPRESSED: dict[str, Any] = {
    "zstd": ("zstd", zstd.compress),
    "gzip": ("gzip", gzip.compress),
    "the old name of gzip": ("x-gzip", gzip.compress),
    "deflate": ("deflate", zlib.compress),
    "deflate without zlib's header": ("deflate", raw_deflate),
    "frames": ("zstd", lambda data: zstd.compress(data[:9]) + zstd.compress(data[9:])),
    "members": ("gzip", lambda data: gzip.compress(data[:9]) + gzip.compress(data[9:])),
}


@pytest.mark.parametrize(("coding", "compress"), COMPRESSED.values(), ids=COMPRESSED)
def test_decoded(coding, compress):
    """Each coding restores the body; a part of it is corrupt, and one byte too many is too large."""
    data = compress(BODY)
    assert decode(data, coding, len(BODY)) == BODY
    with pytest.raises(DecodedBodyTooLarge):
        decode(data, coding, len(BODY) - 1)
    for cut in (*range(0, len(data), 7), len(data) - 1):
        with pytest.raises(CorruptBody):
            decode(data[:cut], coding, LIMIT)
    with pytest.raises(CorruptBody):
        decode(data + b"{}", coding, LIMIT)


BOMBS = {
    "zstd": ("zstd", zstd.compress(bytes(10 * LIMIT)), DecodedBodyTooLarge),
    "gzip": ("gzip", gzip.compress(bytes(10 * LIMIT)), DecodedBodyTooLarge),
    "deflate": ("deflate", zlib.compress(bytes(10 * LIMIT)), DecodedBodyTooLarge),
    "a sum of frames": ("zstd", zstd.compress(bytes(LIMIT // 2)) * 3, DecodedBodyTooLarge),
    "a sum of members": ("gzip", gzip.compress(bytes(LIMIT // 2)) * 3, DecodedBodyTooLarge),
    "many empty members": ("gzip", gzip.compress(b"") * 1000, CorruptBody),
    "many empty frames": ("zstd", zstd.compress(b"") * 1000, CorruptBody),
    "a window beyond the limit": ("zstd", wide_window(BODY), CorruptBody),
}


@pytest.mark.parametrize(("coding", "data", "error"), BOMBS.values(), ids=BOMBS)
def test_bombs(coding, data, error):
    """A small body that grows without bound is rejected at the limit."""
    with pytest.raises(error):
        decode(data, coding, LIMIT)


@given(st.sampled_from(sorted({coding for coding, _ in COMPRESSED.values()})), st.binary(max_size=200))
def test_any_bytes(coding, data):
    """Any bytes give a result within the limit or one of the two errors."""
    with contextlib.suppress(CorruptBody, DecodedBodyTooLarge):
        assert len(decode(data, coding, LIMIT)) <= LIMIT


@given(st.sampled_from(sorted(COMPRESSED)), st.integers(0, 1000), st.integers(1, 255))
def test_a_wrong_byte(name, place, change):
    """A changed byte raises one of the two errors or changes the body."""
    coding, compress = COMPRESSED[name]
    data = bytearray(compress(BODY))
    data[place % len(data)] ^= change
    with contextlib.suppress(CorruptBody, DecodedBodyTooLarge):
        assert len(decode(bytes(data), coding, LIMIT)) <= LIMIT


def test_headers():
    """Coding names are case-insensitive; identity is no coding; others, and several, are a 415."""
    assert parse_coding([" ZSTD ,identity"]) == parse_coding(["identity", "zstd"]) == "zstd"
    assert parse_coding(["", "identity,"]) == ""
    for values in (["br"], ["gzip, zstd"], ["gzip", "gzip"]):
        with pytest.raises(RequestError, match="zstd, gzip, deflate") as rejection:
            parse_coding(values)
        assert (rejection.value.status, rejection.value.code) == (415, "unsupported_content_encoding")


@pytest.mark.parametrize("hooked", [False, True], ids=["fast path", "quart"])
async def test_served(hooked):
    """A compressed request is served on both paths; bombs, corrupt and unsupported ones have their status."""
    async with world(max_body_bytes=1000) as it:
        if hooked:
            it.app.before_request(_nothing)
        cases = (
            (b"zstd", zstd.compress(BODY), 200, None),
            (b"gzip", gzip.compress(BODY), 200, None),
            (b"zstd", zstd.compress(bytes(1001)), 413, "request_too_large"),
            (b"zstd", BODY, 400, "invalid_content_encoding"),
            (b"br", BODY, 415, "unsupported_content_encoding"),
        )
        for coding, body, status, code in cases:
            found, headers, answer = await it.post(body, headers=[(b"content-encoding", coding)])
            assert (found, answer.get("error", {}).get("code")) == (status, code)
            accepted = content_codings.ACCEPT_ENCODING if status == 415 else None
            assert headers.get("accept-encoding") == accepted


async def _nothing():
    return None
