"""Text in sound: the lowest bits of samples spell what is spoken, so that a transcript can repeat it.

It survives what qproxy does with sound: other heads, parts joined to one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

MARK = b"\x00\xf5TEXT"
_LENGTH_BYTES = 2
_LOWEST = bytes(value & 1 for value in range(256))
_BITS = [bytes(int(bit) for bit in f"{value:08b}") for value in range(256)]


class SpokenText(NamedTuple):
    """A text, and the sample at which it begins."""

    text: str
    start: int


def _bits(data: bytes) -> bytes:
    """Return the bits of bytes, one a byte."""
    return b"".join(_BITS[value] for value in data)


def _bytes(bits: bytes) -> bytes:
    digits = bits.translate(bytes.maketrans(b"\x00\x01", b"01")).decode()
    return bytes(int(digits[start : start + 8], 2) for start in range(0, len(digits), 8))


def embed(sound: bytes, text: str) -> bytes:
    """Return samples of 16 bits that spell a text, as they are if they are too few."""
    spoken = text.encode()
    bits = _bits(MARK + len(spoken).to_bytes(_LENGTH_BYTES, "big") + spoken)
    if 2 * len(bits) > len(sound):
        return sound
    samples = bytearray(sound)
    low = samples[: 2 * len(bits) : 2]
    samples[: 2 * len(bits) : 2] = bytes(value & ~1 | bit for value, bit in zip(low, bits, strict=True))
    return bytes(samples)


def find(sound: bytes) -> Iterator[SpokenText]:
    """Yield the texts in samples, or in a WAV file."""
    bits, mark = sound[::2].translate(_LOWEST), _bits(MARK)
    position = bits.find(mark)
    while position >= 0:
        start = position + len(mark)
        end = start + 8 * _LENGTH_BYTES
        length = 8 * int.from_bytes(_bytes(bits[start:end]), "big")
        yield SpokenText(_bytes(bits[end : end + length]).decode(errors="replace"), position)
        position = bits.find(mark, end + length)
