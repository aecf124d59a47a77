"""What a person at the terminal reads."""

from __future__ import annotations

import sys


def say(line: str) -> None:
    """A line of a command's result."""
    print(line, flush=True)


def remark(line: str) -> None:
    """A line beside the result, which a pipe does not carry on."""
    print(line, file=sys.stderr, flush=True)


def remark_over(line: str) -> None:
    """A remark in the place of the one before, in a terminal."""
    print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)


def complain(line: str) -> None:
    """Why a command failed."""
    remark(f"qproxy: {line}")
