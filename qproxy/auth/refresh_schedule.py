"""The schedule of token refreshes, and the backoff of failed ones. Pure."""

from __future__ import annotations

from dataclasses import dataclass

MARGIN = 30.0
"""Seconds before its expiry from which a token is not used for new requests."""
MARGIN_RATIO = 2.0
"""Minimum seconds between the start of a refresh and that margin."""
FIRST_BACKOFF, MAX_BACKOFF = 2.0, 60.0


@dataclass(frozen=True, slots=True)
class RefreshSchedule:
    """Times of one token, in seconds before its expiry."""

    refresh_margin: float
    """When the background task refreshes it."""
    margin: float
    """When requests stop using it and wait for the refresh."""


def plan_refresh(lifetime: float, ahead: float, jitter: float) -> RefreshSchedule:
    """Return the schedule of a token with this lifetime in seconds; `jitter`, in 0..1, spreads many accounts.

    A token that lasts minutes is refreshed in its second half; otherwise it would be refreshed at once. One
    of less than two minutes has a quarter of its lifetime as its margin.
    """
    margin = min(MARGIN, lifetime / 4)
    latest = margin + min(MARGIN_RATIO, lifetime / 20)
    return RefreshSchedule(max(latest, min(ahead * (0.75 + jitter / 2), lifetime / 2)), margin)


def backoff(failures: int, jitter: float) -> float:
    """Return the seconds before the next attempt after consecutive failures."""
    return min(MAX_BACKOFF, FIRST_BACKOFF * 2.0 ** min(failures - 1, 10)) * (0.5 + jitter / 2)
