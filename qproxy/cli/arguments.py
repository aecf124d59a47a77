"""Types of command-line arguments; an invalid value is wrong usage."""

from __future__ import annotations

import argparse
import math

MAX_PORT = 65535


def port(text: str) -> int:
    """Return a port number. Raises argparse.ArgumentTypeError."""
    if not (text.isascii() and text.isdecimal()) or int(text[:6]) > MAX_PORT:
        raise argparse.ArgumentTypeError(f"expected a port from 0 to {MAX_PORT}, got {text!r:.80}")
    return int(text)


def count(text: str) -> int:
    """Return an integer greater than 0. Raises argparse.ArgumentTypeError."""
    if not (text.isascii() and text.isdecimal()) or len(text) > 18 or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected an integer greater than 0, got {text!r:.80}")
    return int(text)


def seconds(text: str) -> float:
    """Return a number of seconds greater than 0. Raises argparse.ArgumentTypeError."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number of seconds greater than 0, got {text!r:.80}")
    return value
