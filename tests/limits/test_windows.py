"""Usage windows: their start, end and time zone."""

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
def test_start_and_end(name):
    """A day is in UTC or Beijing time, a week starts on Monday in Beijing, a month on its first day."""
    now, begin, end = map(at, CASES[name])
    assert WINDOWS[name].start(now) == begin
    assert WINDOWS[name].end(now) == end


SECONDS = st.integers(int(at("2020-01-01T00:00+00:00")), int(at("2040-01-01T00:00+00:00")))


@given(SECONDS, st.sampled_from([*WINDOWS]))
def test_windows_are_contiguous(now, name):
    """Each window starts where the one before ended, on a full hour."""
    window = WINDOWS[name]
    begin, end = window.start(now), window.end(now)
    assert begin <= now < end
    if not window.rolling:
        assert begin % 3600 == 0
        assert window.start(end) == end
        assert window.end(begin) == end
