"""How long an account is left alone after a refusal, and for which models.

`after` is pure.  A rest is for one model where the limit is the model's (a minute's limit on pay-as-you-go, a model that
the account does not have), else for the account.  It only ever says "ask the others first": an account that is alone
is asked all the same, and a rest ends with a probe, one request whose answer decides for the rest of them.

Where the upstream names the time, that is the time.  Where only words speak of a quota, it is asked again now and
then, more and more seldom: words have been wrong before, and somebody may have paid.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from qproxy.accounts import quota_resets as resets
from qproxy.wire.errors import Limit, QproxyError, Retry, UpstreamError

MINUTE = 60.0
PROBE_SECONDS = 15.0
"""How long a probe may take before another request may be the next one."""
LEAST_MINUTE = 2.0
"""To the next minute, but not so short that the clocks' difference eats it."""


class Span(NamedTuple):
    """Seconds of the first rest of a kind, and of the longest: each failed probe doubles it."""

    first: float
    longest: float


SPANS = {
    Limit.MOMENT: Span(2.0, 60.0),
    Limit.CONCURRENCY: Span(2.0, 30.0),
    Limit.MINUTE: Span(MINUTE, 300.0),
    Limit.QUOTA: Span(300.0, 3600.0),
    Limit.FREE: Span(300.0, 3600.0),
    Limit.MODEL: Span(600.0, 3600.0),
    Limit.ACCESS: Span(60.0, 600.0),
}


@dataclass(frozen=True, slots=True)
class Rest:
    """An account, or one model of it, is left alone until then."""

    until: float
    since: float
    why: str
    reset: float | None = None
    """When what has run out is expected back, where that is known."""
    strikes: int = 0
    """Probes that have failed."""
    probing: bool = False

    def shifted(self, seconds: float) -> Rest:
        """The same rest by a clock that is so much ahead."""
        reset = None if self.reset is None else self.reset + seconds
        return Rest(self.until + seconds, self.since + seconds, self.why, reset, self.strikes, self.probing)


def limit_of(error: QproxyError) -> Limit:
    """What an error says about the account; an error of our own making says it by its code."""
    if isinstance(error, UpstreamError) and error.limit is not Limit.NONE:
        return error.limit
    if error.code == "insufficient_quota":
        return Limit.QUOTA
    if error.code == "upstream_credentials_exhausted":
        return Limit.ACCESS
    asks_to_wait = isinstance(error, UpstreamError) and error.named_wait is not None and error.status == 503
    later = asks_to_wait or error.status == 429 or error.retry is Retry.LATER
    return Limit.MOMENT if later else Limit.NONE


def scope(limit: Limit, plan: str, model: str) -> str:
    """Which of an account's models a limit is for: one, or all of them ("")."""
    of_the_model = limit in (Limit.MODEL, Limit.FREE)
    return model if of_the_model or (plan == "payg" and limit in (Limit.MOMENT, Limit.MINUTE)) else ""


def after(error: QproxyError, limit: Limit, strikes: int, wall: float) -> Rest:
    """The rest that an error asks for, by the wall clock; `strikes` probes have failed before."""
    span = SPANS[limit]
    pause, reset = min(span.first * 2.0**strikes, span.longest), None
    spoken = error.named_wait if isinstance(error, UpstreamError) else error.retry_after
    if spoken is not None:
        pause = min(spoken, resets.LONGEST)
        reset = wall + pause
    elif limit is Limit.MINUTE:
        pause += max(MINUTE - wall % MINUTE, LEAST_MINUTE) - MINUTE
    elif limit in (Limit.MOMENT, Limit.CONCURRENCY):
        pause = min(max(error.retry_after or 0.0, span.first) * 2.0**strikes, span.longest)
    elif limit is Limit.QUOTA:
        pause, reset = _quota(error.message, pause, wall)
    return Rest(wall + pause, wall, limit.value, reset, strikes)


def _quota(message: str, pause: float, wall: float) -> tuple[float, float | None]:
    reset = resets.named(message, wall)
    if reset is not None:
        return reset - wall, reset
    reset = resets.of_period(message, wall)  # a guess: asked again before, but seldom
    return (pause, None) if reset is None else (min(SPANS[Limit.QUOTA].longest, reset - wall), reset)
