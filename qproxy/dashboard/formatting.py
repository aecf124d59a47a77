"""Numbers, times and costs as text. Pure.

Times are Unix seconds, shown in UTC. What is not known is a dash, and of a cost the word `unknown`: never 0.
"""

from __future__ import annotations

import time

DAY = 86400


def format_number(value: float | None) -> str:
    """Return `12,345`, `123k` or `4.56M`; a dash for an unknown number."""
    if value is None:
        return "–"
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e5, "k")):
        if abs(value) >= size:
            scaled = value / (1000 if letter == "k" else size)
            return f"{scaled:.{2 if scaled < 10 else 1 if scaled < 100 else 0}f}{letter}"
    return f"{value:,.0f}"


def format_duration(seconds: float | None) -> str:
    """Return `340 ms`, `2.4 s`, `3 min`, `5 h` or `12 d`."""
    if seconds is None:
        return "–"
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    for size, name, upto in ((1, "s", 120), (60, "min", 120), (3600, "h", 48)):
        if seconds < size * upto:
            return f"{seconds / size:.{1 if size == 1 and seconds < 10 else 0}f} {name}"
    return f"{seconds / DAY:.0f} d"


def format_milliseconds(value: float | None) -> str:
    """Return a duration in milliseconds as text."""
    return format_duration(None if value is None else value / 1000)


def format_ago(when: float, now: float) -> str:
    """Return the time since a past event as text."""
    seconds = max(0.0, now - when)
    return "just now" if seconds < 2 else f"{_join_units(seconds)} ago"


def format_ahead(when: float, now: float) -> str:
    """Return the time until a future event as text."""
    return "now" if when <= now else f"in {_join_units(max(1.0, when - now))}"


def _join_units(seconds: float) -> str:
    """Return a duration of at least a second, without fractions."""
    return f"{seconds:.0f} s" if seconds < 10 else format_duration(seconds)


def format_moment(when: float | None) -> str:
    """Return a time with seconds."""
    return "–" if when is None else time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(when))


def format_clock(when: float, period: float) -> str:
    """Return a time for an axis of `period` seconds."""
    shape = "%H:%M" if period <= 2 * DAY else "%d %b"
    return time.strftime(shape, time.gmtime(when))


def format_money(dollars: float | None) -> str:
    """Return US dollars as text."""
    if dollars is None:
        return "–"
    return f"${dollars:,.2f}" if dollars >= 0.1 or dollars == 0 else f"${dollars:.4f}"


def format_cost(dollars: float | None, unpriced: int = 0) -> str:
    """Return the cost of requests, of which `unpriced` have no known price."""
    if dollars is None or (unpriced and not dollars):
        return "unknown"
    return f"{format_money(dollars)} + unknown" if unpriced else format_money(dollars)


def plural(count: int, one: str, many: str | None = None) -> str:
    """Return `1 request` or `2 requests`."""
    return f"{format_number(count)} {one if count == 1 else many or one + 's'}"
