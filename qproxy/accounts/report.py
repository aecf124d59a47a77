"""Rows for `qproxy accounts`, from the settings and the shared state. Pure.

Nothing here is secret: names, hosts, states, times, counts, and upstreams' messages about quotas.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import urlsplit

from qproxy.accounts.rate_limit import AccountRateLimiter
from qproxy.accounts.shared_state import AccountState, remaining
from qproxy.config.accounts import AccountConfig


@dataclass(frozen=True, slots=True)
class AccountRow:
    """The row of one account; times are Unix time."""

    name: str
    kind: str
    plan: str | None
    host: str | None
    state: str
    """ready, rate_limited, cooling_down, unused (no request yet), or the state of an unusable login."""
    message: str
    """A description of the state."""
    expires_at: float | None
    """When the token expires (it is refreshed before); None for a key."""
    cooldown_until: float | None
    models_refused: Mapping[str, float]
    """Models that cool down, and until when."""
    quota: str | None
    """The upstream's last message about the quota."""
    quota_reset_at: float | None
    in_flight: int
    last_minute: int
    requests: int
    failures: int
    last_error: str | None
    last_error_at: float | None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def account_rows(
    accounts: Sequence[AccountConfig], states: Mapping[str, AccountState], wall_clock: float
) -> list[AccountRow]:
    """Return a row for every account in the settings."""
    return [_account_row(account, states.get(account.identity), wall_clock) for account in accounts]


def _account_row(account: AccountConfig, stored: AccountState | None, wall_clock: float) -> AccountRow:
    known = stored or AccountState()
    cooldown = known.cooldowns.get("")
    cooling_down = cooldown is not None and cooldown.until > wall_clock
    limits = AccountRateLimiter(account.rpm, account.tpm).limits
    refused = {
        model: item.until for model, item in known.cooldowns.items() if model and item.until > wall_clock
    }
    login = known.login
    if login is not None and not login.usable:
        state, text = login.state, login.message
    elif cooldown is not None and cooling_down:
        until = format_time(cooldown.until, wall_clock)
        state, text = "cooling_down", f"cooling down until {until}: {cooldown.reason}"
    elif stored is None:
        state, text = "unused", "not used yet"
    elif any(remaining(known, what, limit, wall_clock).wait(1, wall_clock) for what, limit in limits.items()):
        state, text = "rate_limited", "at its requests or tokens per minute"
    else:
        state, text = "ready", "ready"
    if refused:
        text += f"; not for {', '.join(sorted(refused)[:5])}"
    return AccountRow(
        name=account.name,
        kind=account.kind,
        plan=account.plan,
        host=urlsplit(account.base_url or "").hostname,
        state=state,
        message=text,
        expires_at=login.expires_at if login is not None else None,
        cooldown_until=cooldown.until if cooldown is not None and cooling_down else None,
        models_refused=refused,
        quota=known.quota,
        quota_reset_at=cooldown.reset_at if cooldown is not None else None,
        in_flight=known.active_requests(wall_clock),
        last_minute=known.last_minute(wall_clock),
        requests=known.requests,
        failures=known.failures,
        last_error=known.last_error,
        last_error_at=known.last_error_at,
    )


def format_time(when: float, wall_clock: float) -> str:
    """Return a time in UTC as text, without the date if it is today."""
    when = round(when)  # it was converted between two clocks
    day = "" if int(when // 86400) == int(wall_clock // 86400) else "%Y-%m-%d "
    return time.strftime(f"{day}%H:%M:%S UTC", time.gmtime(when))
