"""What a person at the terminal reads."""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence


def print_result(line: str) -> None:
    """A line of a command's result."""
    print(line, flush=True)


def format_table(rows: Sequence[Sequence[str]], numbers: Collection[int] = ()) -> list[str]:
    """Rows of words as lines, each column as wide as its widest word; `numbers` are the columns that stand to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(_pad(row, widths, numbers)).rstrip() for row in rows]


def _pad(row: Sequence[str], widths: Sequence[int], numbers: Collection[int]) -> list[str]:
    return [
        word.rjust(width) if column in numbers else word.ljust(width)
        for column, (word, width) in enumerate(zip(row, widths, strict=True))
    ]


def print_note(line: str) -> None:
    """A line beside the result, which a pipe does not carry on."""
    print(line, file=sys.stderr, flush=True)


def print_progress(line: str) -> None:
    """A remark in the place of the one before, in a terminal."""
    print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)


def print_error(line: str) -> None:
    """Why a command failed."""
    print_note(f"qproxy: {line}")
