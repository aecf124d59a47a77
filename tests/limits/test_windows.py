"""Spans of time: where they begin and end, in whose zone."""

from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qproxy.limits.windows import WINDOWS


def at(text):
    return datetime.fromisoformat(text).timestamp()


CASES = {
    "5h": ("2026-11-26T21:30+00:00", "2026-11-26T16:30+00:00", "2026-11-27T02:30+00:00"),
    "day": ("2026-11-26T21:30+00:00", "2026-11-26T00:00+00:00", "2026-11-27T00:00+00:00"),
    "day-beijing": ("2026-11-26T21:30+00:00", "2026-11-27T00:00+08:00", "2026-11-28T00:00+08:00"),
    "week": ("2026-11-29T15:59+00:00", "2026-11-23T00:00+08:00", "2026-11-30T00:00+08:00"),
    "month": ("2026-12-31T23:59+00:00", "2026-12-01T00:00+00:00", "2027-01-01T00:00+00:00"),
}


@pytest.mark.parametrize("name", WINDOWS)
def test_where_it_begins_and_ends(name):
    """A day is UTC's or Beijing's, a week begins on Monday in Beijing, a month is the calendar's."""
    now, begin, end = map(at, CASES[name])
    assert WINDOWS[name].start(now) == begin
    assert WINDOWS[name].end(now) == end


SECONDS = st.integers(int(at("2020-01-01T00:00+00:00")), int(at("2040-01-01T00:00+00:00")))


@given(SECONDS, st.sampled_from([*WINDOWS]))
def test_every_moment_is_in_its_window(now, name):
    """Windows leave no gap: each begins where the one before ended; those of hours begin on full ones."""
    window = WINDOWS[name]
    begin, end = window.start(now), window.end(now)
    assert begin <= now < end
    if not window.rolling:
        assert begin % 3600 == 0
        assert window.start(end) == end
        assert window.end(begin) == end
