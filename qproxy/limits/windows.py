"""Windows of time over which usage is counted and budgets are granted. Pure: callers pass the time.

Qwen's plans count in rolling five hours, in weeks that start on Monday 00:00 in Beijing, and in months;
people think in days, their own or the server's. Every window except the rolling one starts on a full hour of
UTC, so that hourly sums are enough for it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone

UTC = timezone.utc  # noqa: UP017 - beside BEIJING it reads better
BEIJING = timezone(timedelta(hours=8))


@dataclass(frozen=True, slots=True)
class UsageWindow:
    """One kind of window; times are Unix seconds."""

    name: str
    label: str
    """As in "per ..."."""
    zone: timezone | None
    """The time zone of its start; None for a rolling window."""
    _start_of: Callable[[datetime], datetime]
    _end_of: Callable[[datetime], datetime]

    @property
    def rolling(self) -> bool:
        return self.zone is None

    def start(self, now: float) -> float:
        """Return when the window that contains `now` started."""
        return self._start_of(datetime.fromtimestamp(now, self.zone or UTC)).timestamp()

    def end(self, now: float) -> float:
        """Return when the window that contains `now` ends; for a rolling one, when usage of `now` leaves
        it."""
        return self._end_of(self._start_of(datetime.fromtimestamp(now, self.zone or UTC))).timestamp()


def _midnight(when: datetime) -> datetime:
    return when.replace(hour=0, minute=0, second=0, microsecond=0)


def _monday(when: datetime) -> datetime:
    return _midnight(when) - timedelta(days=when.weekday())


def _first(when: datetime) -> datetime:
    return _midnight(when).replace(day=1)


def _after(days: int) -> Callable[[datetime], datetime]:
    return lambda when: when + timedelta(days=days)


_FIVE_HOURS = timedelta(hours=5)
WINDOWS: dict[str, UsageWindow] = {
    window.name: window
    for window in (
        UsageWindow(
            "5h", "five hours", None, lambda now: now - _FIVE_HOURS, lambda begin: begin + 2 * _FIVE_HOURS
        ),
        UsageWindow("day", "day (UTC)", UTC, _midnight, _after(1)),
        UsageWindow("day-beijing", "day (Beijing)", BEIJING, _midnight, _after(1)),
        UsageWindow("week", "week (from Monday, Beijing)", BEIJING, _monday, _after(7)),
        UsageWindow("month", "month (UTC)", UTC, _first, lambda begin: _first(begin + timedelta(days=32))),
    )
}
