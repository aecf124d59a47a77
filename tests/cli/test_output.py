"""Terminal output: tables that fit the width, and colors that can be disabled."""

import io
import logging

import pytest

from qproxy.cli.output import MIN_COLUMN, colored, format_table, wrap
from qproxy.config import shows_colors
from qproxy.diagnostics import Finding, lines
from qproxy.telemetry.log_format import LogFormatter

ROWS = [("name", "host", "requests"), ("a" * 30, "b" * 60, "12")]


def test_a_table_fits():
    """The widest texts are shortened until the table fits; numbers are not."""
    table = format_table(ROWS, numbers=[2], width=80)
    assert max(map(len, table)) == 80
    assert table[1].split() == ["a" * 30, "b" * 37 + "…", "12"]
    assert format_table(ROWS, numbers=[2])[1].split() == ["a" * 30, "b" * 60, "12"]


def test_a_narrow_terminal_keeps_columns():
    """No column is shortened below its least width, however narrow the terminal is."""
    table = format_table(ROWS, numbers=[2], width=10)
    assert table[1].split() == ["a" * (MIN_COLUMN - 1) + "…", "b" * (MIN_COLUMN - 1) + "…", "12"]


def test_a_long_note_is_wrapped():
    """A note fits the terminal, its further lines indented; without a terminal it is one line."""
    text = "word " * 30
    assert max(map(len, wrap(text, 80))) <= 80
    assert all(line.startswith("  word") for line in wrap(text, 80)[1:])
    assert wrap(text, None) == [text]


class Terminal(io.StringIO):
    def isatty(self):
        return True


COLORED = {
    "a terminal": (Terminal(), {}, True),
    "NO_COLOR": (Terminal(), {"NO_COLOR": "1"}, False),
    "an empty NO_COLOR": (Terminal(), {"NO_COLOR": ""}, True),
    "a dumb terminal": (Terminal(), {"TERM": "dumb"}, False),
    "a pipe": (io.StringIO(), {}, False),
}


@pytest.mark.parametrize(("stream", "variables", "expected"), COLORED.values(), ids=COLORED.keys())
def test_colors(stream, variables, expected, monkeypatch):
    """Colors are for terminals, unless NO_COLOR is set (no-color.org) or the terminal has none."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert shows_colors(is_terminal=stream.isatty()) == expected
    assert colored("ok", "green", stream) == ("\x1b[32mok\x1b[0m" if expected else "ok")


def test_a_report_fits():
    """Messages and advice of a report are wrapped within their column."""
    found = [Finding("area", "connection", "failed", "message " * 20, "advice " * 20)]
    report = list(lines(found, 80))
    assert max(map(len, report)) <= 80
    assert "".join(lines(found)).count("\n") == 0
    assert {line[:23].strip() for line in report[2:-1]} == {""}


def test_a_log_line_fits():
    """A text line for a terminal is wrapped, and its continuation is indented; its level has a color."""
    record = logging.LogRecord("qproxy", logging.ERROR, "", 0, "word " * 40, None, None)
    text = LogFormatter(as_json=False, width=80, colored=True).format(record)
    assert (text[:5], text[-4:]) == ("\x1b[31m", "\x1b[0m")
    first, *rest = text[5:-4].split("\n")
    assert max(map(len, [first, *rest])) <= 80
    assert all(line.startswith("    ") for line in rest)
    assert "\n" not in LogFormatter(as_json=False).format(record)
