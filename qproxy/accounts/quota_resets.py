"""Quota reset times: from an upstream's message, and by the calendar of the plans.

Pure: wall-clock seconds in, wall-clock seconds out. A message decides how long an account is avoided, never
that it is excluded; a time that it does not name is None.

Messages of real upstreams: "The quota will reset at 08-14 09:18:00 UTC." (Token Plan), "week allocated quota
exceeded" (Coding Plan: five rolling hours, weeks from Monday 00:00 UTC+8, months).
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, timezone

CHINA_TIME = timezone(timedelta(hours=8))
"""Alibaba's calendar, also assumed for a time without a zone: an early probe is cheap."""
MAX_RESET = 32 * 86400.0
"""Maximum seconds until a reset: the longest period of Alibaba's plans is a month."""
_AT = re.compile(
    r"resets?(?: time)?(?: is)?(?: at| on|:)? *+(?:(?:(?P<year>\d{4})[-/])?(?P<month>\d{1,2})[-/]"
    r"(?P<day>\d{1,2})[t ,]++)?"
    r"(?P<hour>\d{1,2}):(?P<minute>\d{2})(?::(?P<second>\d{2}))?(?:\.\d++)? *+"
    r"\(?(?P<zone>utc|gmt|z\b|cst|beijing)?(?: *+(?P<sign>[+-])(?P<offset>\d{1,2})(?::?(?P<half>\d{2}))?)?"
)
_IN = re.compile(
    r"(?:resets?|again|retry) ++(?:in|after) ++~?((?:\d++(?:\.\d++)? *+"
    r"(?:d(?:ays?)?|h(?:ours?)?|m(?:in(?:ute)?s?)?|s(?:ec(?:ond)?s?)?)(?: |,|and)*+)++)"
)
_EPOCH = re.compile(r"resets?(?: at|:)? *+(\d{10})(\d{3})?\b")
_DURATION = re.compile(r"(?<![\d.])(\d++(?:\.\d++)?) *+([dhms])")
_SECONDS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0}
PERIOD_SECONDS = {"hour": 5 * 3600.0, "day": 86400.0, "week": 7 * 86400.0, "month": MAX_RESET}
_PERIOD = re.compile(r"\b(?:5-)?(hour|day|week|month)(?:ly)? {1,16}(?:\w{1,64} {1,16})?quota|\b(dai)ly\b")


def reset_time_in(text: str, wall_clock: float) -> float | None:
    """Return the reset time that a message names, or None."""
    text = text.lower()
    when: float | None = None
    if match := _IN.search(text):
        when = wall_clock + sum(float(count) * _SECONDS[unit] for count, unit in _DURATION.findall(match[1]))
    elif match := _EPOCH.search(text):
        when = float(match[1])
    elif match := _AT.search(text):
        when = _parse_time(match.groupdict(), wall_clock)
    return when if when is not None and wall_clock < when <= wall_clock + MAX_RESET else None


def _parse_time(parts: dict[str, str | None], wall_clock: float) -> float | None:
    zone = _time_zone(parts)
    now = datetime.fromtimestamp(wall_clock, zone)
    try:
        moment = now.replace(
            year=int(parts["year"] or now.year),
            month=int(parts["month"] or now.month),
            day=int(parts["day"] or now.day),
            hour=int(parts["hour"] or 0),
            minute=int(parts["minute"] or 0),
            second=int(parts["second"] or 0),
            microsecond=0,
        )
        if parts["month"] is None and moment <= now:
            moment += timedelta(days=1)
        elif parts["year"] is None and moment < now - timedelta(days=180):
            moment = moment.replace(year=now.year + 1)
    except ValueError:  # no such day
        return None
    return moment.timestamp()


def _time_zone(parts: dict[str, str | None]) -> timezone:
    if parts["offset"] is not None and int(parts["offset"]) < 24:
        offset = timedelta(hours=int(parts["offset"]), minutes=int(parts["half"] or 0) % 60)
        return timezone(-offset if parts["sign"] == "-" else offset)
    return UTC if parts["zone"] in ("utc", "gmt", "z") else CHINA_TIME


def period_seconds(text: str) -> float | None:
    """Return the longest duration of the period that a message names, None without one."""
    match = _PERIOD.search(text.lower())
    return None if match is None else PERIOD_SECONDS[match[1] or "day"]


def next_period_reset(text: str, wall_clock: float) -> float | None:
    """Return when the period that a message names ends, by the plans' calendar; None without a period."""
    match = _PERIOD.search(text.lower())
    if match is None:
        return None
    period = match[1] or "day"
    if period == "hour":
        return wall_clock + 5 * 3600.0
    today = datetime.fromtimestamp(wall_clock, CHINA_TIME).replace(hour=0, minute=0, second=0, microsecond=0)
    if period == "day":
        return (today + timedelta(days=1)).timestamp()
    if period == "week":
        return (today + timedelta(days=7 - today.weekday())).timestamp()
    return (today.replace(day=1) + timedelta(days=32)).replace(day=1).timestamp()
