"""Facts about a recording before it is sent: its format and its length.

The format follows from the first bytes, else from the name of the file; the length in seconds is known only
of WAV files, whose head has it.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

TYPES = {
    "wav": "audio/wav",
    "mp3": "audio/mpeg",
    "flac": "audio/flac",
    "ogg": "audio/ogg",
    "opus": "audio/ogg",
    "m4a": "audio/mp4",
    "mp4": "audio/mp4",
    "webm": "audio/webm",
    "aac": "audio/aac",
    "amr": "audio/amr",
}
"""Media types by format."""
_NAMES = {"mpeg": "mp3", "mpga": "mp3", "oga": "ogg"}
"""Formats by further file extensions."""
_MAGIC = (
    (0, b"RIFF", "wav"),
    (0, b"fLaC", "flac"),
    (0, b"OggS", "ogg"),
    (0, b"ID3", "mp3"),
    (0, b"\x1a\x45\xdf\xa3", "webm"),
    (4, b"ftyp", "m4a"),
    (0, b"#!AMR", "amr"),
)
BYTES_PER_SECOND = 16_000
"""Of compressed sound of 128 kbit/s: a guess at the length of what is no WAV file."""


@dataclass(frozen=True, slots=True)
class AudioFile:
    """A recording that a client sends."""

    length: int
    """Bytes."""
    format: str
    seconds: float | None = None
    """None if the head does not tell."""

    @property
    def likely_seconds(self) -> float:
        """Return the seconds, estimated where they are not known."""
        return self.length / BYTES_PER_SECOND if self.seconds is None else self.seconds


def describe(head: bytes, length: int, filename: str) -> AudioFile:
    """Return the facts in the first bytes of a recording and in its name."""
    format = _format(head, filename)
    return AudioFile(length, format, wav_seconds(head, length) if format == "wav" else None)


def _format(head: bytes, filename: str) -> str:
    for offset, magic, format in _MAGIC:
        if head.startswith(magic, offset):
            return format
    if head[:1] == b"\xff" and len(head) > 1 and head[1] & 0xE0 == 0xE0:
        return "mp3"  # the frame of an MPEG stream
    extension = filename.rpartition(".")[2].lower()
    extension = _NAMES.get(extension, extension)
    return extension if extension in TYPES else "wav"


def wav_seconds(head: bytes, length: int) -> float | None:
    """Return the seconds of a WAV file of `length` bytes (RIFF), None if its head does not tell."""
    position, rate = 12, 0
    while position + 8 <= len(head):
        name, size = struct.unpack_from("<4sI", head, position)
        position += 8
        if name == b"data":
            size = min(size, length - position)  # that of a stream is not known when it begins
            return size / rate if rate else None
        if name == b"fmt " and position + 12 <= len(head):
            rate = struct.unpack_from("<I", head, position + 8)[0]
        position += size + size % 2
    return None
