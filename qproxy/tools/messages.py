"""Limits of a message from an MCP server, checked before the SDK parses it.

The SDK parses a message in one blocking step and creates objects for its values: 8 MiB of `[],` took 9 s.
"""

from __future__ import annotations

import re

MAX_MESSAGE = 8 * 1024 * 1024
"""Bytes of one message."""
MAX_VALUES = 100_000
"""Commas and opening brackets outside strings, which take about 0.2 s to parse."""
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"?+', re.DOTALL)


class TooLarge(ValueError):
    """Raised for a message that exceeds a limit."""


def values(text: bytes) -> int:
    """Return the approximate number of values in JSON text, which may be a part that is split outside
    strings."""
    bare = _STRING.sub(b"", text)
    return bare.count(b",") + bare.count(b"[") + bare.count(b"{")


def check(text: bytes) -> None:
    """Raise TooLarge for a message with too many bytes or values."""
    if len(text) > MAX_MESSAGE:
        raise TooLarge(f"a message of more than {MAX_MESSAGE} bytes")
    if len(text) > MAX_VALUES and values(text) > MAX_VALUES:
        raise TooLarge(f"a message of more than {MAX_VALUES} values")
