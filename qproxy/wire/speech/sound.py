"""Sound: WAV heads (RIFF, 16 bits, mono) and media types."""

from __future__ import annotations

import struct

RATE = 24_000
"""Samples a second of OpenAI's `pcm`, and of Qwen3-TTS."""
TYPES = {
    "mp3": "audio/mpeg",
    "opus": "audio/opus",
    "aac": "audio/aac",
    "flac": "audio/flac",
    "wav": "audio/wav",
    "pcm": "audio/pcm",
}
UNKNOWN_SIZE = 0xFFFFFFFF
"""The size of a WAV file whose end is not known when it begins."""
MAX_HEAD = 64 * 1024


def wav_head(rate: int) -> bytes:
    """Return the head of a WAV file that is streamed."""
    chunk = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, rate, rate * 2, 2, 16)
    head = struct.pack("<4sI4s", b"RIFF", UNKNOWN_SIZE, b"WAVE")
    return head + chunk + struct.pack("<4sI", b"data", UNKNOWN_SIZE)


class WavReader:
    """Removes the head of a WAV file that arrives in pieces; sound without one passes."""

    def __init__(self) -> None:
        self.rate = RATE
        self._held: bytes | None = b""
        """What has arrived of the head; None once its end is known."""

    def feed(self, data: bytes) -> bytes:
        """Return the samples in the next piece."""
        if self._held is None:
            return data
        self._held += data
        if not b"RIFF".startswith(self._held[:4]):
            return self._pass(0)
        return self._parse_head(self._held)

    def close(self) -> bytes:
        """Return what was held, at the end of sound that is shorter than a head."""
        held, self._held = self._held or b"", None
        return b"" if held.startswith(b"RIFF") else held

    def _parse_head(self, held: bytes) -> bytes:
        position = 12
        while position + 8 <= len(held):
            name, size = struct.unpack_from("<4sI", held, position)
            position += 8
            if name == b"data":
                return self._pass(position)
            if name == b"fmt " and position + 8 <= len(held):
                self.rate = struct.unpack_from("<I", held, position + 4)[0] or RATE
            position += size + size % 2
        return self._pass(0) if len(held) > MAX_HEAD else b""

    def _pass(self, start: int) -> bytes:
        rest, self._held = (self._held or b"")[start:], None
        return rest
