"""How faithful and how fast the resampler of realtime sessions is: figures for docs/realtime.md."""

import math
import struct
import time

from qproxy.emulator.realtime_session import tone
from qproxy.wire.realtime.audio import RATES, Resampler, _phases


def response(rate):
    """What the filter between `rate` and 16 kHz does to a frequency, in dB."""
    common = math.gcd(rate, 16_000)
    phases = _phases(16_000 // common, rate // common)
    taps = [tap for step in zip(*(reversed(phase) for phase in phases), strict=True) for tap in step]
    top = rate * 16_000 // common

    def decibels(hertz):
        turn = math.tau * hertz / top
        real = sum(tap * math.cos(turn * n) for n, tap in enumerate(taps))
        return 20 * math.log10(
            math.hypot(real, sum(tap * math.sin(turn * n) for n, tap in enumerate(taps))) / len(phases)
        )

    return decibels, top, (len(taps) - 1) / 2 / top


def signal_to_noise(rate):
    """Of a 1 kHz tone, in dB: what is not the tone any more, against the tone."""
    out = Resampler(rate).feed(tone(1000, 0.5, rate))
    samples = struct.unpack(f"<{len(out) // 2}h", out)[1600:6400]
    turn = math.tau * 1000 / 16_000
    real = sum(value * math.cos(turn * n) for n, value in enumerate(samples)) * 2 / len(samples)
    imaginary = sum(value * math.sin(turn * n) for n, value in enumerate(samples)) * 2 / len(samples)
    line = (real**2 + imaginary**2) / 2
    power = sum(value * value for value in samples) / len(samples)
    return 10 * math.log10(line / max(power - line, 1e-9))


def cost(rate):
    """Seconds of a core for one second of sound, the best of five."""
    sound, best = tone(440, 1.0, rate), math.inf
    for _ in range(5):
        ear, began = Resampler(rate), time.perf_counter()
        ear.feed(sound)
        best = min(best, time.perf_counter() - began)
    return best


print(
    "| from | pass-band (to 7/8 of the lower half) | stop-band (from 17/16 of it) | 1 kHz tone to noise "
    "| delay | a second costs |"
)
print("| ---: | ---: | ---: | ---: | ---: | ---: |")
for rate in RATES:
    if rate == 16_000:
        continue
    lower = min(rate, 16_000) / 2
    decibels, top, delay = response(rate)
    ripple = max(abs(decibels(hertz)) for hertz in range(0, int(lower * 0.875) + 1, 50))
    stop = max(decibels(hertz) for hertz in range(math.ceil(lower * 1.0625), top // 2, 25))
    print(
        f"| {rate / 1000:g} kHz | ±{ripple:.4f} dB | {stop:.1f} dB | {signal_to_noise(rate):.0f} dB | "
        f"{delay * 1000:.1f} ms | {cost(rate) * 1000:.0f} ms |"
    )
