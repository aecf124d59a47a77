"""Output on the terminal: results, notes, progress, errors and tables."""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence


def print_result(line: str) -> None:
    """Print a line of a command's result to standard output. Raises OSError."""
    try:
        print(line, flush=True)
    except OSError as error:
        raise OSError(error.errno, error.strerror, "standard output") from None


def format_table(rows: Sequence[Sequence[str]], numbers: Collection[int] = ()) -> list[str]:
    """Return the rows as lines with aligned columns; `numbers` are the columns to align on the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(_pad(row, widths, numbers)).rstrip() for row in rows]


def _pad(row: Sequence[str], widths: Sequence[int], numbers: Collection[int]) -> list[str]:
    return [
        word.rjust(width) if column in numbers else word.ljust(width)
        for column, (word, width) in enumerate(zip(row, widths, strict=True))
    ]


def print_note(line: str) -> None:
    """Print a line to standard error."""
    print(line, file=sys.stderr, flush=True)


def print_progress(line: str) -> None:
    """Replace the last line of the terminal."""
    print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)


def print_error(line: str) -> None:
    """Print the reason of a failure to standard error."""
    print_note(f"qproxy: {line}")
