"""What a message of an MCP server may have, before the SDK's models are made of it.

The SDK reads a message in one step that lets nothing else run, and makes objects of its values: 8 MiB of `[],` took 9 s.
"""

from __future__ import annotations

import re

MAX_MESSAGE = 8 * 1024 * 1024
"""Bytes."""
MAX_VALUES = 100_000
"""Commas and opening brackets outside strings: some 0.2 s."""
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"?+', re.DOTALL)


class TooLarge(ValueError):
    """A message has more than a message may have."""


def values(text: bytes) -> int:
    """How many values JSON text has, about; it may be a part of one that is cut between strings."""
    bare = _STRING.sub(b"", text)
    return bare.count(b",") + bare.count(b"[") + bare.count(b"{")


def check(text: bytes) -> None:
    """Raise TooLarge for a message that has more bytes or values than it may have."""
    if len(text) > MAX_MESSAGE:
        raise TooLarge(f"a message of more than {MAX_MESSAGE} bytes")
    if len(text) > MAX_VALUES and values(text) > MAX_VALUES:
        raise TooLarge(f"a message of more than {MAX_VALUES} values")
