"""Output on the terminal: results, notes, progress, errors and tables.

Tables and colors are for people: a terminal gets tables that fit it and, unless NO_COLOR is set, colors.
Anything else gets whole lines without colors.
"""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Collection, Sequence
from typing import Literal, TextIO

from qproxy import config as configuration

COLORS = {"red": "31", "green": "32", "yellow": "33"}
"""Parameters of SGR (ECMA-48 8.3.117)."""
Color = Literal["red", "green", "yellow"]
MIN_COLUMN = 8
"""Width below which no column is shortened."""


def print_result(line: str) -> None:
    """Print a line of a command's result to standard output. Raises OSError."""
    try:
        print(line, flush=True)
    except OSError as error:
        raise OSError(error.errno, error.strerror, "standard output") from None


def colored(text: str, color: Color | None, stream: TextIO | None = None) -> str:
    """Return a text in a color if `stream` (default: standard output) shows colors."""
    stream = stream or sys.stdout
    if color is None or stream is None or not configuration.shows_colors(is_terminal=stream.isatty()):
        return text
    return f"\x1b[{COLORS[color]}m{text}\x1b[0m"


def output_width() -> int | None:
    """Return the columns of the terminal ($COLUMNS), or None if standard output is none."""
    is_terminal = sys.stdout is not None and sys.stdout.isatty()
    return shutil.get_terminal_size().columns if is_terminal else None


def format_table(
    rows: Sequence[Sequence[str]], numbers: Collection[int] = (), width: int | None = None
) -> list[str]:
    """Return the rows as lines with aligned columns; `numbers` are the columns to align on the right.

    With a `width`, the widest columns of text are shortened until the lines fit.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    texts = [column for column in range(len(widths)) if column not in numbers]
    while width is not None and texts and sum(widths) + 2 * (len(widths) - 1) > width:
        widest = max(texts, key=widths.__getitem__)
        if widths[widest] <= MIN_COLUMN:
            break
        widths[widest] -= 1
    return ["  ".join(_pad(row, widths, numbers)).rstrip() for row in rows]


def _pad(row: Sequence[str], widths: Sequence[int], numbers: Collection[int]) -> list[str]:
    return [
        word.rjust(width) if column in numbers else shorten(word, width).ljust(width)
        for column, (word, width) in enumerate(zip(row, widths, strict=True))
    ]


def shorten(text: str, width: int) -> str:
    """Return a text of at most `width` characters."""
    return text if len(text) <= width else f"{text[: width - 1]}…"


def wrap(text: str, width: int | None, indent: str = "  ") -> list[str]:
    """Return a text in lines of at most `width` columns, all but the first indented; one line without a
    width."""
    if width is None:
        return [text]
    return textwrap.wrap(
        text, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def print_note(line: str) -> None:
    """Print a line to standard error."""
    print(line, file=sys.stderr, flush=True)


def print_progress(line: str) -> None:
    """Replace the last line of the terminal."""
    print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)


def print_error(line: str) -> None:
    """Print the reason of a failure to standard error."""
    print_note(f"{colored('qproxy:', 'red', sys.stderr)} {line}")
