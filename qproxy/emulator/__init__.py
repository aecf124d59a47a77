"""A Qwen look-alike, for people without an account, for tests, and for developing against.

server     `Emulator`: HTTP over any Trio stream
chat       what it says (pure); `completions` and `embeddings` the same for those
schema     arguments that fit a tool's schema (pure)
faults     what it does wrong on demand
identity   its identity server: device flow, page in the browser, rotating refresh tokens
"""

from qproxy.emulator.faults import FAULTS, Cut, Pause, Raw, Repeat, Reply, Reset, wild
from qproxy.emulator.identity import Identity
from qproxy.emulator.server import Emulator, Seen

__all__ = [
    "FAULTS",
    "Cut",
    "Emulator",
    "Identity",
    "Pause",
    "Raw",
    "Repeat",
    "Reply",
    "Reset",
    "Seen",
    "wild",
]
