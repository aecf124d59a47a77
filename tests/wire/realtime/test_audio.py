"""The resampler: its fidelity, and its independence of how bytes are split."""

import cmath
import math
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qproxy.emulator.realtime_session import tone
from qproxy.wire.realtime.audio import RATES, Resampler

SOUND = bytes(range(256)) * 12


def spectrum_line(data, hertz, rate):
    """Return the power of one tone in a whole number of its periods, and the total power."""
    samples = struct.unpack(f"<{len(data) // 2}h", data)
    turn = -2j * math.pi * hertz / rate
    line = sum(value * cmath.exp(turn * n) for n, value in enumerate(samples)) / len(samples)
    return 2 * abs(line) ** 2, sum(value * value for value in samples) / len(samples)


def steady(data, rate):
    """Return a tenth of a second from the middle."""
    start = len(data) // 4 * 2
    return data[start : start + rate // 5]


@pytest.mark.parametrize("rate", [8_000, 24_000, 48_000])
def test_a_tone_stays_a_tone(rate):
    """A tone of 1 kHz keeps its level to 0.01 dB, and everything else is 80 dB below it."""
    out = steady(Resampler(rate).feed(tone(1000, 0.3, rate)), 16_000)
    line, power = spectrum_line(out, 1000, 16_000)
    assert abs(10 * math.log10(line / (16_000**2 / 2))) < 0.01
    assert 10 * math.log10(line / max(power - line, 1e-9)) > 80


@pytest.mark.parametrize(
    ("hertz", "least", "most"),
    [(3_400, -0.01, 0.01), (7_000, -0.01, 0.01), (8_500, -200, -65), (11_000, -200, -65)],
)
def test_the_passband_and_the_stopband(hertz, least, most):
    """Speech up to 7 kHz is kept to 0.01 dB; frequencies that 16 kHz cannot represent are 65 dB down without
    aliasing."""
    out = steady(Resampler(24_000).feed(tone(hertz, 0.3)), 16_000)
    power = sum(value * value for value in struct.unpack(f"<{len(out) // 2}h", out)) / (len(out) // 2)
    assert least <= 10 * math.log10(max(power, 1e-9) / (16_000**2 / 2)) <= most


@given(st.lists(st.integers(0, 300), max_size=12), st.sampled_from(RATES))
def test_any_cut_gives_the_same_samples(cuts, rate):
    """The output does not depend on how the bytes are cut, even in the middle of a sample."""
    whole = Resampler(rate)
    expected = whole.feed(SOUND) + whole.flush()
    pieces, out, rest = Resampler(rate), b"", SOUND
    for size in cuts:
        out += pieces.feed(rest[:size])
        rest = rest[size:]
    assert out + pieces.feed(rest) + pieces.flush() == expected


@pytest.mark.parametrize("rate", RATES)
def test_no_sample_is_lost(rate):
    """The output is as long as the input, with the filter's own length behind it; then the resampler is
    reset."""
    ear = Resampler(rate)
    first = ear.feed(SOUND) + ear.flush()
    extra = len(first) / 2 / 16_000 - len(SOUND) / 2 / rate
    assert 0 <= extra < 0.005
    assert ear.flush() == b""
    assert ear.feed(SOUND) + ear.flush() == first


def test_holds_few_samples():
    """The filter drops samples that it no longer needs."""
    ear = Resampler(24_000)
    for _ in range(50):
        ear.feed(SOUND)
    assert len(ear._samples) < 100


def test_loud_sound_is_clipped():
    """A full-scale square wave overshoots in the filter and is clipped to 16 bits without wrapping."""
    square = struct.pack("<2400h", *([32767] * 12 + [-32768] * 12) * 100)
    out = struct.unpack("<1600h", Resampler(24_000).feed(square))
    assert max(out) == 32767
    assert min(out) == -32768
