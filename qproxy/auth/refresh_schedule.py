"""When a token is renewed, and when a failed renewal is tried again.  Pure."""

from __future__ import annotations

from dataclasses import dataclass

MARGIN = 30.0
"""With so many seconds left at most, no request is begun with a token: by then it is to be renewed."""
MARGIN_RATIO = 2.0
"""So many seconds before the margin a renewal begins at the latest."""
FIRST_BACKOFF, MAX_BACKOFF = 2.0, 60.0


@dataclass(frozen=True, slots=True)
class RefreshSchedule:
    """Seconds before the end of one token."""

    refresh_margin: float
    """From here on the background renews it."""
    margin: float
    """From here on requests wait for the renewal; the token serves none any more."""


def plan_refresh(lifetime: float, ahead: float, jitter: float) -> RefreshSchedule:
    """The schedule of a token that lasts so many seconds from its issue; `spread`, in 0..1, keeps many accounts apart.

    A token that lasts minutes is renewed in its second half: it would otherwise be renewed as soon as it is there.
    One of less than two minutes has a quarter of its lifetime as its margin.
    """
    margin = min(MARGIN, lifetime / 4)
    latest = margin + min(MARGIN_RATIO, lifetime / 20)
    return RefreshSchedule(max(latest, min(ahead * (0.75 + jitter / 2), lifetime / 2)), margin)


def backoff(failures: int, jitter: float) -> float:
    """Seconds before the next try after so many failures in a row."""
    return min(MAX_BACKOFF, FIRST_BACKOFF * 2.0 ** min(failures - 1, 10)) * (0.5 + jitter / 2)
