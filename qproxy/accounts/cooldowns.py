"""Cooldowns: how long an account is avoided after an upstream error, and for which models. Pure.

A cooldown covers one model if the limit is the model's (a rate limit on pay-as-you-go, a model that the
account does not have), otherwise the account. It only means that other accounts are preferred: a single
account is used anyway. It ends with a probe, one request whose result decides for the others.

If the upstream names the time, that is the time. If a message only mentions a quota, the account is probed
with exponential backoff: such messages have been wrong, and the owner may have paid.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

from qproxy.accounts import quota_resets
from qproxy.wire.errors import LimitKind, QproxyError, RetryHint, UpstreamError

MINUTE = 60.0
PROBE_SECONDS = 15.0
"""Seconds after which another request may become the probe."""
MIN_RATE_LIMIT_SECONDS = 2.0
"""Minimum of a cooldown to the next minute, larger than the difference of two clocks."""


MAX_RATE_LIMIT_SECONDS = 300.0
"""Maximum cooldown after a rate limit: none of Alibaba's counts longer than a minute."""


class BackoffRange(NamedTuple):
    """Seconds of the first and of the longest cooldown; each failed probe doubles it."""

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


MAX_SECONDS = {
    **{limit.value: max(MAX_RATE_LIMIT_SECONDS, span.max) for limit, span in BACKOFF.items()},
    LimitKind.QUOTA.value: quota_resets.MAX_RESET,
    LimitKind.FREE.value: quota_resets.MAX_RESET,
}
"""Maximum seconds of a cooldown, by its reason."""


@dataclass(frozen=True, slots=True)
class Cooldown:
    """A period in which an account, or one of its models, is avoided."""

    until: float
    since: float
    """When the upstream last confirmed it."""
    reason: str
    reset_at: float | None = None
    """When the quota is expected to reset, if known."""
    failed_probes: int = 0
    """Number of failed probes."""
    probing: bool = False

    def with_clock_offset(self, seconds: float) -> Cooldown:
        """Return the cooldown on a clock that is `seconds` ahead."""
        reset = None if self.reset_at is None else self.reset_at + seconds
        return Cooldown(
            self.until + seconds, self.since + seconds, self.reason, reset, self.failed_probes, self.probing
        )


def classify(error: QproxyError) -> LimitKind:
    """Return the limit that an error reports; errors raised by qproxy are classified by code."""
    if isinstance(error, UpstreamError) and error.limit is not LimitKind.NONE:
        return error.limit
    if error.code == "insufficient_quota":
        return LimitKind.QUOTA
    if error.code == "upstream_credentials_exhausted":
        return LimitKind.ACCESS
    has_retry_after = (
        isinstance(error, UpstreamError) and error.retry_after_hint is not None and error.status == 503
    )
    later = has_retry_after or error.status == 429 or error.retry is RetryHint.AFTER
    return LimitKind.BURST if later else LimitKind.NONE


def is_fault(error: QproxyError, limit: LimitKind) -> bool:
    """Return whether an error shows that the account itself does not work, with any model and request."""
    return limit is LimitKind.ACCESS or (limit is LimitKind.NONE and error.status >= 500)


def bounded(cooldown: Cooldown, now: float) -> Cooldown:
    """Return a stored cooldown that ends when its reason must have, whatever clock and version wrote it."""
    since = min(cooldown.since, now)
    until = now + PROBE_SECONDS if cooldown.probing else since + MAX_SECONDS.get(cooldown.reason, MINUTE)
    return replace(cooldown, since=since, until=min(cooldown.until, until))


def combine_cooldowns(stored: Cooldown | None, other: Cooldown, now: float) -> Cooldown:
    """Return the cooldown of two that processes know for the same key.

    The later deadline counts. A probe that is in progress has none of its own: its result does, also where it
    ends earlier, and it replaces neither another probe nor a later confirmation of the cause.
    """
    if stored is None:
        return other
    if other.probing:
        outdated = other.since < stored.since or other.until <= stored.until
        return stored if outdated or (stored.probing and now < stored.until) else other
    if stored.probing and other.since > stored.since:
        return other
    return replace(other if other.until >= stored.until else stored, since=max(stored.since, other.since))


def cooldown_scope(limit: LimitKind, plan: str, model: str) -> str:
    """Return the model that a limit covers, or "" for all models of the account."""
    is_model_limit = limit in (LimitKind.MODEL, LimitKind.FREE)
    return (
        model if is_model_limit or (plan == "payg" and limit in (LimitKind.BURST, LimitKind.MINUTE)) else ""
    )


def cooldown_for(error: QproxyError, limit: LimitKind, failed_probes: int, wall_clock: float) -> Cooldown:
    """Return the cooldown after an error, on the wall clock; `failed_probes` probes have failed before."""
    span = BACKOFF[limit]
    pause, reset = min(span.first * 2.0**failed_probes, span.max), None
    retry_after = error.retry_after_hint if isinstance(error, UpstreamError) else error.retry_after
    if retry_after is not None:
        pause = min(retry_after, _longest(limit, error.message))
        reset = wall_clock + pause
    elif limit is LimitKind.MINUTE:
        pause += max(MINUTE - wall_clock % MINUTE, MIN_RATE_LIMIT_SECONDS) - MINUTE
    elif limit in (LimitKind.BURST, LimitKind.CONCURRENCY):
        pause = min(max(error.retry_after or 0.0, span.first) * 2.0**failed_probes, span.max)
    elif limit is LimitKind.QUOTA:
        pause, reset = _quota_cooldown(error.message, pause, wall_clock)
    return Cooldown(wall_clock + pause, wall_clock, limit.value, reset, failed_probes)


def _longest(limit: LimitKind, message: str) -> float:
    """Return the maximum seconds that the cause of a cooldown can last, whatever time the upstream names."""
    period = quota_resets.period_seconds(message) if limit in (LimitKind.QUOTA, LimitKind.FREE) else None
    return period or MAX_SECONDS[limit.value]


def _quota_cooldown(message: str, pause: float, wall_clock: float) -> tuple[float, float | None]:
    reset = quota_resets.reset_time_in(message, wall_clock)
    if reset is not None:
        return min(reset - wall_clock, _longest(LimitKind.QUOTA, message)), reset
    reset = quota_resets.next_period_reset(message, wall_clock)  # estimated, so it is probed earlier
    return (pause, None) if reset is None else (min(BACKOFF[LimitKind.QUOTA].max, reset - wall_clock), reset)
