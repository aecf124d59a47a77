"""The state of an account: one function for `/readyz`, the metrics, the dashboard and the commands. Pure.

A state means that the account *works*, not that it may be tried:

    ready          a request succeeded, and nothing has failed since
    unknown        no request has succeeded yet, or none since its quota was exhausted
    failing        a failure of the account itself came after the last success
    cooling_down   other accounts are preferred for a while: a quota or a rate limit of the upstream
    rate_limited   at its own requests or tokens per minute
    at_capacity    at its limit of concurrent requests

An account without a usable login has the state of its login (`auth.status`). Times are Unix time.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from qproxy.accounts.cooldowns import Cooldown
from qproxy.wire.errors import LimitKind

STATES = ("ready", "unknown", "failing", "cooling_down", "rate_limited", "at_capacity")
MAX_RESULTS = 20
"""Number of results of which the share of failures is known."""
SUCCEEDED, FAILED = "+", "-"
SEVERITIES = {
    "ready": "ok", "refreshing": "ok",
    "unknown": "unknown",
    "cooling_down": "warning", "rate_limited": "warning", "at_capacity": "warning",
    "retrying": "warning", "ending": "warning", "not_saved": "warning",
}  # fmt: skip
"""Of a state; any other is an error."""


@dataclass(frozen=True, slots=True)
class LoginState:
    """The state of a logged-in account's tokens (`auth.status`)."""

    state: str
    message: str
    usable: bool
    expires_at: float | None = None


@dataclass(frozen=True, slots=True)
class AccountHistory:
    """The knowledge about an account from the results of its requests."""

    last_success_at: float | None = None
    last_fault_at: float | None = None
    """When a failure of the account itself was last seen."""
    last_cause: str | None = None
    """Status, code and redacted message of the last failure."""
    results: str = ""
    """The last results, oldest first, as `SUCCEEDED` and `FAILED`."""

    @property
    def is_failing(self) -> bool:
        """Return whether the account has failed since its last success."""
        if self.last_fault_at is None:
            return False
        return self.last_success_at is None or self.last_fault_at > self.last_success_at


@dataclass(frozen=True, slots=True)
class AccountCondition:
    """An account's state and its cause."""

    state: str
    message: str

    @property
    def severity(self) -> str:
        """Return ok, unknown, warning or error."""
        return SEVERITIES.get(self.state, "error")


def condition_of(
    history: AccountHistory,
    now: float,
    *,
    login: LoginState | None = None,
    cooldown: Cooldown | None = None,
    retry_at: float = 0.0,
    at_capacity: bool = False,
    rate_limited: bool = False,
) -> AccountCondition:
    """Return the condition of an account.

    `cooldown` is that of the whole account, past ones included; `retry_at` is the end of its circuit's pause.
    """
    if login is not None and not login.usable:
        return AccountCondition(login.state, login.message)
    cooling = cooldown is not None and now < cooldown.until
    if history.is_failing:
        retry_at = max(retry_at, cooldown.until) if cooldown is not None else retry_at
        return AccountCondition("failing", _failure(history, retry_at, now))
    if cooldown is not None and cooling:
        return AccountCondition(
            "cooling_down", f"cooling down until {format_time(cooldown.until, now)}: {cooldown.reason}"
        )
    if history.last_success_at is None:
        return AccountCondition("unknown", "no request has succeeded yet")
    if cooldown is not None and cooldown.reason == LimitKind.QUOTA.value:
        return AccountCondition("unknown", "its quota was exhausted, and it was not used since")
    if at_capacity:
        return AccountCondition("at_capacity", "at its limit of concurrent requests (max_in_flight)")
    if rate_limited:
        return AccountCondition("rate_limited", "at its requests or tokens per minute")
    return AccountCondition("ready", "ready")


def _failure(history: AccountHistory, retry_at: float, now: float) -> str:
    """Return the last cause, the share of failures, and when requests use the account again."""
    text = history.last_cause or "the cause is not known"
    failed, count = history.results.count(FAILED), len(history.results)
    if count:
        text = f"{failed} of the last {count} request{'s' if count > 1 else ''} failed: {text}"
    return f"{text}; next attempt {format_time(retry_at, now)}" if retry_at > now else text


def format_time(when: float, wall_clock: float) -> str:
    """Return a time in UTC as text, without the date if it is today."""
    when = round(when)  # it was converted between two clocks
    day = "" if int(when // 86400) == int(wall_clock // 86400) else "%Y-%m-%d "
    return time.strftime(f"{day}%H:%M:%S UTC", time.gmtime(when))
