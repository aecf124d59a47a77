"""A Qwen look-alike, for people without an account, for tests, and for developing against.

server     `Emulator`: HTTP over any Trio stream
chat       what it says (pure)
schema     arguments that fit a tool's schema (pure)
faults     what it does wrong on demand
"""

from qproxy.emulator.faults import FAULTS, Cut, Pause, Raw, Repeat, Reply, Reset, wild
from qproxy.emulator.server import Emulator, Seen

__all__ = ["FAULTS", "Cut", "Emulator", "Pause", "Raw", "Repeat", "Reply", "Reset", "Seen", "wild"]
