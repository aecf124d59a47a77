"""How long an account is left alone after a refusal, and for which models.

`cooldown_for` is pure.  A rest is for one model where the limit is the model's (a minute's limit on pay-as-you-go, a model that
the account does not have), else for the account.  It only ever says "ask the others first": an account that is alone
is asked all the same, and a rest ends with a probe, one request whose answer decides for the rest of them.

Where the upstream names the time, that is the time.  Where only words speak of a quota, it is asked again now and
then, more and more seldom: words have been wrong before, and somebody may have paid.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from qproxy.accounts import quota_resets
from qproxy.wire.errors import LimitKind, QproxyError, RetryHint, UpstreamError

MINUTE = 60.0
PROBE_SECONDS = 15.0
"""How long a probe may take before another request may be the next one."""
MIN_RATE_LIMIT_SECONDS = 2.0
"""To the next minute, but not so short that the clocks' difference eats it."""


class BackoffRange(NamedTuple):
    """Seconds of the first rest of a kind, and of the longest: each failed probe doubles it."""

    first: float
    max: float


BACKOFF = {
    LimitKind.BURST: BackoffRange(2.0, 60.0),
    LimitKind.CONCURRENCY: BackoffRange(2.0, 30.0),
    LimitKind.MINUTE: BackoffRange(MINUTE, 300.0),
    LimitKind.QUOTA: BackoffRange(300.0, 3600.0),
    LimitKind.FREE: BackoffRange(300.0, 3600.0),
    LimitKind.MODEL: BackoffRange(600.0, 3600.0),
    LimitKind.ACCESS: BackoffRange(60.0, 600.0),
}


@dataclass(frozen=True, slots=True)
class Cooldown:
    """An account, or one model of it, is left alone until then."""

    until: float
    since: float
    reason: str
    reset_at: float | None = None
    """When what has run out is expected back, where that is known."""
    failed_probes: int = 0
    """Probes that have failed."""
    probing: bool = False

    def with_clock_offset(self, seconds: float) -> Cooldown:
        """The same rest by a clock that is so much ahead."""
        reset = None if self.reset_at is None else self.reset_at + seconds
        return Cooldown(
            self.until + seconds, self.since + seconds, self.reason, reset, self.failed_probes, self.probing
        )


def classify(error: QproxyError) -> LimitKind:
    """What an error says about the account; an error of our own making says it by its code."""
    if isinstance(error, UpstreamError) and error.limit is not LimitKind.NONE:
        return error.limit
    if error.code == "insufficient_quota":
        return LimitKind.QUOTA
    if error.code == "upstream_credentials_exhausted":
        return LimitKind.ACCESS
    asks_to_wait = (
        isinstance(error, UpstreamError) and error.retry_after_hint is not None and error.status == 503
    )
    later = asks_to_wait or error.status == 429 or error.retry is RetryHint.AFTER
    return LimitKind.BURST if later else LimitKind.NONE


def cooldown_scope(limit: LimitKind, plan: str, model: str) -> str:
    """Which of an account's models a limit is for: one, or all of them ("")."""
    of_the_model = limit in (LimitKind.MODEL, LimitKind.FREE)
    return model if of_the_model or (plan == "payg" and limit in (LimitKind.BURST, LimitKind.MINUTE)) else ""


def cooldown_for(error: QproxyError, limit: LimitKind, strikes: int, wall_clock: float) -> Cooldown:
    """The rest that an error asks for, by the wall clock; `failed_probes` probes have failed before."""
    span = BACKOFF[limit]
    pause, reset = min(span.first * 2.0**strikes, span.max), None
    spoken = error.retry_after_hint if isinstance(error, UpstreamError) else error.retry_after
    if spoken is not None:
        pause = min(spoken, quota_resets.MAX_RESET)
        reset = wall_clock + pause
    elif limit is LimitKind.MINUTE:
        pause += max(MINUTE - wall_clock % MINUTE, MIN_RATE_LIMIT_SECONDS) - MINUTE
    elif limit in (LimitKind.BURST, LimitKind.CONCURRENCY):
        pause = min(max(error.retry_after or 0.0, span.first) * 2.0**strikes, span.max)
    elif limit is LimitKind.QUOTA:
        pause, reset = _quota_cooldown(error.message, pause, wall_clock)
    return Cooldown(wall_clock + pause, wall_clock, limit.value, reset, strikes)


def _quota_cooldown(message: str, pause: float, wall_clock: float) -> tuple[float, float | None]:
    reset = quota_resets.reset_time_in(message, wall_clock)
    if reset is not None:
        return reset - wall_clock, reset
    reset = quota_resets.next_period_reset(message, wall_clock)  # a guess: asked again before, but seldom
    return (pause, None) if reset is None else (min(BACKOFF[LimitKind.QUOTA].max, reset - wall_clock), reset)
