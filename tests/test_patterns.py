"""No text makes a regular expression of the package slow: checked by shape and by attacks."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.patterns import BOUNDED, all_patterns, shape

SLOW = {
    "a repeat of a repeat": r"(a+)+$",
    "a loop whose parts have no border": r"(?:[A-Z][\w'-]*\s?)+x",
    "two repeats of one class": r"[0-9]+[0-9]*x",
    "an optional part between": r"[0-9]+\.?[0-9]*\Z",
    "a part that both can match between": r'[^"]*x[^"]*"',
    "blanks on both sides of what may be empty": r"\s*(?:#.*)?\s*$",
    "two branches that begin alike": r"(?:a|ab|b)*c",
    "lines of which each may be empty": r"(?:[a-z]+:[ \t]*(?:\S+(?:[ \t]+\S+)*)?[ \t]*\r\n)*\Z",
    "a loop of words": r"(?:ab)*(?:ab)*c",
    "more than a bounded repeat": rf"[0-9]{{1,{BOUNDED + 1}}}[0-9]*x",
}
SLOW_SEARCHES = {
    "every start scans the run": r"\d+x",
    "possessive or not": r"\d++x",
    "behind words that the run holds": r"day\w* allocated",
    "anything behind a word": r"max_tokens .*exceed",
    "a class behind a border of its own": r"\beyJ[\w-]{8,4000}\.",
}
FAST = {
    "a possessive repeat": r"[0-9]++(?:\.[0-9]*+)?\Z",
    "an atomic group": r"(?>a+)a*b",
    "a border between": r"[a-z]+:[a-z]+\Z",
    "a loop with a border": r"(?:[a-z]+,)*\Z",
    "a string": r'"(?:[^"\\]|\\.)*"',
    "a bounded repeat": r"[0-9]{1,16}[0-9]*\Z",
}
FAST_SEARCHES = {
    "nothing behind it can fail": r"\bsk-[\w-]{8,}",
    "a start only at the run's beginning": r"(?<![0-9])[0-9]++x",
    "a start only at a line's": r"^[a-z]+:",
    "a bounded distance": r"max_tokens .{0,200}exceed",
    "a mark that the run does not hold": r"<[^<>]+>",
}


def test_every_pattern_is_linear_by_its_shape():
    """No pattern gives back characters that a later repeat matches again, and no search scans a run from each
    place."""
    found = {
        str(used): faults
        for used in all_patterns()
        if (faults := shape(used.pattern, anchored=used.anchored))
    }
    assert found == {}


def test_all_patterns_are_found():
    """Patterns of modules, of tables, of records, and of calls are found."""
    patterns = {used.pattern.pattern for used in all_patterns()}
    assert len(patterns) > 90
    for one in (
        r"[A-Za-z0-9_-]{1,64}\Z",
        r"insufficient_quota",
        r"\n✿|✿(?=FUNC|ARGS|RES|RET)",
        r"(\d{1,5})([mhdw])",
    ):
        assert one in patterns


@pytest.mark.parametrize("pattern", SLOW.values(), ids=SLOW)
def test_the_check_rejects_slow_patterns(pattern):
    """A pattern that backtracks over a run is rejected, matched or searched for."""
    assert shape(re.compile(pattern), anchored=True)
    assert shape(re.compile(pattern), anchored=False)


@pytest.mark.parametrize("pattern", SLOW_SEARCHES.values(), ids=SLOW_SEARCHES)
def test_the_check_rejects_slow_searches(pattern):
    """A pattern that scans a run from each of its places is rejected as a search, and only as a search."""
    assert shape(re.compile(pattern), anchored=False)
    assert not shape(re.compile(pattern), anchored=True)


@pytest.mark.parametrize("pattern", FAST.values(), ids=FAST)
def test_the_check_accepts_fast_patterns(pattern):
    """A pattern that gives nothing back, or has a border, is accepted."""
    assert not shape(re.compile(pattern), anchored=True)


@pytest.mark.parametrize("pattern", FAST_SEARCHES.values(), ids=FAST_SEARCHES)
def test_the_check_accepts_fast_searches(pattern):
    """A search whose starts cannot overlap is accepted."""
    assert not shape(re.compile(pattern), anchored=False)


def test_attacks_end():
    """Long runs that match each part of each pattern, with a near miss behind them, take linear time."""
    result = subprocess.run(
        [sys.executable, "-m", "tests.patterns"],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert int(result.stdout) > 9000
