"""When a token is renewed, and when a failed renewal is tried again.  Pure."""

from __future__ import annotations

from dataclasses import dataclass

MARGIN = 30.0
"""At the latest so many seconds before its end a token is renewed, and no request is begun with it."""
FIRST_BACKOFF, LONGEST_BACKOFF = 2.0, 60.0


@dataclass(frozen=True, slots=True)
class Schedule:
    """Seconds before the end of one token."""

    ahead: float
    """From here on the background renews it."""
    margin: float
    """From here on requests wait for the renewal."""


def schedule(lasts: float, ahead: float, spread: float) -> Schedule:
    """The schedule of a token that lasts so many seconds from now; `spread`, in 0..1, keeps many accounts apart.

    A token that lasts minutes is renewed in its second half: it would otherwise be renewed as soon as it is there.
    """
    margin = min(MARGIN, max(lasts, 0.0) / 4)
    return Schedule(max(margin, min(ahead * (0.75 + spread / 2), lasts / 2)), margin)


def backoff(failures: int, spread: float) -> float:
    """Seconds before the next try after so many failures in a row."""
    return min(LONGEST_BACKOFF, FIRST_BACKOFF * 2.0 ** min(failures - 1, 10)) * (0.5 + spread / 2)
