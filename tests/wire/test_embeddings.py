"""Vectors as bytes: extracted from a response, checked and written one at a time."""

import json
import struct
from base64 import b64decode, b64encode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qproxy.wire.embeddings import EmbeddingInput, encode_vectors, extract_vectors
from qproxy.wire.errors import UpstreamError

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
ROWS = st.lists(st.lists(FLOATS, min_size=1, max_size=5), max_size=4)
STRANGE = st.text(st.sampled_from('"embedding":[]\\ ,1')) | st.text()


@given(ROWS, STRANGE, st.sampled_from([None, 2]))
def test_rows_are_extracted(rows, text, indent):
    """Every array called embedding is extracted as it was written, and nothing else changes, whatever strings
    contain."""
    text = f"{text} " if text == "embedding" else text
    body = {"text": text, text: [1], "data": [{"embedding": row, "note": text} for row in rows]}
    rest, found = extract_vectors(json.dumps(body, indent=indent).encode())
    assert [json.loads(row) for row in found] == rows
    numbered = [{"embedding": number, "note": text} for number in range(len(rows))]
    expected = {**body, "data": numbered}
    if text == "data":
        expected = json.loads(json.dumps(expected))
    assert rest == expected


@given(st.lists(FLOATS, min_size=1))
def test_base64_is_little_endian_binary32(numbers):
    """base64 decodes to the server's numbers as little-endian 32-bit floats, and back."""
    coded = encode_vectors(json.dumps(numbers).encode(), base64=True)
    packed = b64decode(json.loads(coded))
    assert packed == struct.pack(f"<{len(numbers)}f", *numbers)
    assert json.loads(encode_vectors(coded, base64=False)) == numbers


def test_numbers_keep_their_digits():
    """As numbers, a vector is forwarded with the server's digits."""
    row = b"[0.10000000000000000001, -1e-7,\n 3]"
    assert encode_vectors(row, base64=False) is row


@pytest.mark.parametrize(
    "row",
    [
        b"[]",
        b"[1,null]",
        b'["1"]',
        b"[NaN]",
        b"[1e999]",
        b"[1e39]",
        b"7",
        b'{"a":1}',
        b'""',
        b'"AAA"',
        b'"????"',
        b'"' + b64encode(b"12345") + b'"',
        b'"' + b64encode(struct.pack("<f", float("nan"))) + b'"',
    ],
)
@pytest.mark.parametrize("base64", [True, False])
def test_an_invalid_vector_is_an_error(row, base64):
    """Only a list of finite binary32 numbers reaches a client."""
    with pytest.raises(UpstreamError, match="vector") as caught:
        encode_vectors(row, base64=base64)
    assert caught.value.code == "upstream_invalid_response"


def test_an_unterminated_array():
    """A truncated body is not JSON."""
    with pytest.raises(ValueError, match="end"):
        extract_vectors(b'{"data":[{"embedding":[1,2')


@pytest.mark.parametrize(("count", "size", "sizes"), [(1, 10, [1]), (10, 10, [10]), (21, 10, [10, 10, 1])])
def test_batches(count, size, sizes):
    """Batches are full except for the last and keep everything else."""
    request = EmbeddingInput("m", [str(number) for number in range(count)], {"dimensions": 64}, base64=True)
    batches = list(request.batches(size))
    assert [len(batch.texts) for batch in batches] == sizes
    assert [text for batch in batches for text in batch.texts] == request.texts
    assert all(batch.base64 and batch.params == request.params for batch in batches)
