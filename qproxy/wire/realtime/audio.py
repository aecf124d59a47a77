"""PCM audio between sample rates: a polyphase low-pass filter that keeps its state between two chunks.

OpenAI's clients send 24 kHz, Qwen accepts 16 kHz. Dropping samples would fold everything above 8 kHz into the
speech; the filter removes it first. Its quality is measured by `scripts/resampling.py` and held by a test.
One sample out costs one dot product of 70 floats, a second of speech 20 to 50 ms of a core, so small pieces
(`MAX_CHUNK`) are filtered in place.

Samples are 16 bits, signed, little-endian, one channel. A byte that is half a sample waits for the other one.
"""

from __future__ import annotations

import math
import operator
import struct
from collections.abc import Callable, Sequence

RATE = 16_000
"""The sample rate that Qwen accepts."""
RATES = (8_000, 16_000, 24_000, 48_000)
"""The sample rates that a client may send."""
MAX_CHUNK = 24_000
"""Maximum bytes filtered at once, so that other tasks run in between."""
ATTENUATION = 70.0
"""Attenuation of the filter's window in dB."""
PASS_BAND, STOP_BAND = 0.875, 1.0625
"""The filter's transition band, as parts of the lower Nyquist frequency."""
_dot: Callable[[Sequence[float], Sequence[float]], float] = getattr(
    math, "sumprod", lambda a, b: sum(map(operator.mul, a, b))
)


class Resampler:
    """A converter from one sample rate to another, in any number of pieces."""

    def __init__(self, rate: int, to: int = RATE) -> None:
        common = math.gcd(rate, to)
        self._up, self._down = to // common, rate // common
        self._phases = _phases(self._up, self._down)
        self._taps = len(self._phases[0])
        self.reset()

    def __repr__(self) -> str:
        return f"<Resampler {self._up}/{self._down}, {self._taps} taps>"

    def reset(self) -> None:
        """Reset the filter's state."""
        self._samples = [0.0] * (self._taps - 1)
        self._position = (self._taps - 1) * self._up
        """Position of the next output, in steps of the rate that both divide."""
        self._half = b""
        self._began = False

    def feed(self, data: bytes) -> bytes:
        """Return the samples that these bytes complete."""
        data = self._half + data
        self._half = data[len(data) & ~1 :]
        if self._up == self._down:
            return data[: len(data) & ~1]
        self._began = True
        samples, phases, taps = self._samples, self._phases, self._taps
        samples += struct.unpack(f"<{len(data) // 2}h", data[: len(data) & ~1])
        position, end, out = self._position, len(samples) * self._up, []
        while position < end:
            last, phase = divmod(position, self._up)
            out.append(_dot(phases[phase], samples[last - taps + 1 : last + 1]))
            position += self._down
        gone = max(0, position // self._up - taps + 1)
        del samples[:gone]
        self._position = position - gone * self._up
        return struct.pack(f"<{len(out)}h", *(max(-32768, min(32767, round(value))) for value in out))

    def flush(self) -> bytes:
        """Return what the filter still holds, and reset it."""
        self._half = b""
        rest = self.feed(bytes(2 * (self._taps // 2))) if self._began else b""
        self.reset()
        return rest


def _phases(up: int, down: int) -> list[list[float]]:
    """Return the filter's coefficients for each phase between two samples, reversed as `feed` needs them."""
    if up == down:
        return [[1.0]]
    width = 0.5 / max(up, down)  # of the lower Nyquist frequency, where 1 is the rate of the steps
    edge, fall = width * (PASS_BAND + STOP_BAND) / 2, width * (STOP_BAND - PASS_BAND)
    count = math.ceil((ATTENUATION - 8) / (2.285 * math.tau * fall))
    per_phase = math.ceil(count / up)
    count = per_phase * up
    beta = 0.1102 * (ATTENUATION - 8.7)
    middle = (count - 1) / 2
    taps = [
        2
        * edge
        * _sinc(2 * edge * (n - middle))
        * _bessel(beta * math.sqrt(1 - ((n - middle) / middle) ** 2))
        for n in range(count)
    ]
    scale = up / sum(taps)
    return [[tap * scale for tap in reversed(taps[phase::up])] for phase in range(up)]


def _sinc(x: float) -> float:
    return math.sin(math.pi * x) / (math.pi * x) if x else 1.0


def _bessel(x: float) -> float:
    """Return the modified Bessel function of order 0, to a float's precision (Kaiser's window)."""
    total = term = 1.0
    step = 0
    while term > total * 1e-12:
        step += 1
        term *= (x / (2 * step)) ** 2
        total += term
    return total
