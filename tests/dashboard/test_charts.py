"""Charts draw numbers, and formatting writes them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qproxy.dashboard import charts, formatting


@pytest.mark.parametrize(
    ("value", "top"),
    [(0, 1), (0.03, 0.05), (1, 1), (1.1, 2), (3, 5), (7, 10), (88, 100), (101, 200), (5e6, 5e6)],
)
def test_a_scale_ends_at_a_round_number(value, top):
    """The top of a scale is 1, 2 or 5 with zeros, and never below the value."""
    assert charts.nice_ceiling(value) == pytest.approx(top)


@given(st.lists(st.tuples(*[st.integers(0, 10**9)] * 3), min_size=1, max_size=60))
def test_bars_stay_within_the_drawing_and_keep_their_proportions(stacks):
    """Shapes stay within the drawing and stack; zero values are not drawn."""
    times = [str(n) for n in range(len(stacks))]
    chart = charts.stacked_bars("x", ("a", "b", "c"), times, stacks, formatting.format_number)
    assert len(chart.columns) == len(stacks)
    assert len(chart.rows) == sum(any(stack) for stack in stacks)
    assert chart.is_empty is (not any(map(any, stacks)))
    for column, stack in zip(chart.columns, stacks, strict=True):
        assert [shape.series for shape in column.shapes] == [n for n, value in enumerate(stack) if value]
        for shape in column.shapes:
            assert column.x <= shape.x <= shape.x + shape.width <= column.x + column.width + 1e-6
            assert 0 <= shape.y <= charts.HEIGHT


@pytest.mark.parametrize(
    ("most", "top", "middle"), [(0, "2", "1"), (1, "2", "1"), (3, "4", "2"), (88, "100", "50")]
)
def test_counts_have_an_integer_scale(most, top, middle):
    """The scale of a count has integer marks."""
    chart = charts.stacked_bars("x", ("a",), ["t"], [(most,)], formatting.format_number)
    assert (chart.top, chart.middle) == (top, middle)


def test_a_line_is_interrupted_at_missing_values():
    """A line has a gap at each missing value, and a single value is a line."""
    chart = charts.step_chart(
        "x",
        ("a", "b"),
        list("tuvw"),
        [(1, 2), (None, None), (2, 2), (1, None)],
        formatting.format_milliseconds,
    )
    assert chart.lines == (
        "M0.00 50.00H250.00M500.00 0.00H750.00V50.00H1000.00",
        "M0.00 0.00H250.00M500.00 0.00H750.00",
    )
    assert chart.columns[1].title == "u: nothing"
    assert chart.columns[3].title == "w: a 1 ms"
    assert [row[0] for row in chart.rows] == ["t", "v", "w"]


@pytest.mark.parametrize(
    ("use", "limit", "percent", "level"),
    [
        (0, 10, 0, "calm"),
        (7, 10, 70, "calm"),
        (8, 10, 80, "near"),
        (10, 10, 100, "full"),
        (99, 10, 100, "full"),
        (5, None, 0, "none"),
    ],
)
def test_a_usage_bar_has_its_severity(use, limit, percent, level):
    """A bar has its percentage and severity; without a limit there is no bar."""
    bar = charts.usage_bars("x", use, limit, formatting.format_number)
    assert (bar.percent, bar.severity) == (percent, level)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0, "0"),
        (9999, "9,999"),
        (18000, "18,000"),
        (123456, "123k"),
        (4.56e6, "4.56M"),
        (12.3e6, "12.3M"),
        (7e9, "7.00G"),
    ],
)
def test_numbers(value, text):
    """A number is whole up to five figures, then rounded to three."""
    assert formatting.format_number(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "–"),
        (0.34, "340 ms"),
        (2.44, "2.4 s"),
        (50, "50 s"),
        (119, "119 s"),
        (180, "3 min"),
        (7199, "120 min"),
        (7201, "2 h"),
        (3 * 86400, "3 d"),
    ],
)
def test_spans(seconds, text):
    """A duration is in the most readable unit."""
    assert formatting.format_duration(seconds) == text


def test_times():
    """Times are formatted relative to now and as UTC; money has its currency."""
    assert (
        formatting.format_ago(99, 100),
        formatting.format_ago(97, 100),
        formatting.format_ago(40, 100),
    ) == (
        "just now",
        "3 s ago",
        "60 s ago",
    )
    assert (formatting.format_ahead(100, 100), formatting.format_ahead(160, 100)) == ("now", "in 60 s")
    assert (formatting.format_moment(0), formatting.format_moment(None)) == ("1970-01-01 00:00:00 UTC", "–")
    assert (formatting.format_clock(3600, 3600), formatting.format_clock(3600, 30 * 86400)) == (
        "01:00",
        "01 Jan",
    )
    assert (
        formatting.format_money(None),
        formatting.format_money(0),
        formatting.format_money(0.0123),
        formatting.format_money(1234.5),
    ) == (
        "–",
        "$0.00",
        "$0.0123",
        "$1,234.50",
    )
