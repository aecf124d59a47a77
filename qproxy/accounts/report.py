"""Rows for `qproxy accounts`, from the settings and the shared state. Pure.

Nothing here is secret: names, hosts, states, times, counts, and upstreams' messages about quotas.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import urlsplit

from qproxy.accounts.condition import condition_of
from qproxy.accounts.cooldowns import bounded
from qproxy.accounts.learned_rules import LearnedRule, learned_rules
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
    """One of `condition.STATES`, or the state of an unusable login."""
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
    last_message: str | None
    """The redacted message of the last error."""
    last_success_at: float | None
    learned_rules: Mapping[str, Sequence[str]]
    """Request rules that the upstream's rejections have taught, by model."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def account_rows(
    accounts: Sequence[AccountConfig], states: Mapping[str, AccountState], wall_clock: float
) -> list[AccountRow]:
    """Return a row for every account in the settings."""
    return [_account_row(account, states.get(account.identity), wall_clock) for account in accounts]


def _account_row(account: AccountConfig, stored: AccountState | None, wall_clock: float) -> AccountRow:
    known = stored or AccountState()
    cooldowns = {key: bounded(item, wall_clock) for key, item in known.cooldowns.items()}
    cooldown = cooldowns.get("")
    limits = AccountRateLimiter(account.rpm, account.tpm).limits
    refused = {key: item.until for key, item in cooldowns.items() if key and item.until > wall_clock}
    condition = condition_of(
        known.history,
        wall_clock,
        login=known.login,
        cooldown=cooldown,
        at_capacity=account.max_in_flight is not None
        and known.active_requests(wall_clock) >= account.max_in_flight,
        rate_limited=any(
            remaining(known, unit, limit, wall_clock).wait(1, wall_clock) for unit, limit in limits.items()
        ),
    )
    text = condition.message
    if refused:
        text += f"; not for {', '.join(sorted(refused)[:5])}"
    return AccountRow(
        name=account.name,
        kind=account.kind,
        plan=account.plan,
        host=urlsplit(account.base_url or "").hostname,
        state=condition.state,
        message=text,
        expires_at=known.login.expires_at if known.login is not None else None,
        cooldown_until=cooldown.until if cooldown is not None and cooldown.until > wall_clock else None,
        models_refused=refused,
        quota=known.quota,
        quota_reset_at=cooldown.reset_at if cooldown is not None else None,
        in_flight=known.active_requests(wall_clock),
        last_minute=known.last_minute(wall_clock),
        requests=known.requests,
        failures=known.failures,
        last_error=known.last_error,
        last_error_at=known.last_error_at,
        last_message=known.last_message,
        last_success_at=known.last_success_at,
        learned_rules=rules_by_model(learned_rules(known.learned_rules)),
    )


def rules_by_model(learned: Iterable[LearnedRule]) -> dict[str, list[str]]:
    """Return the names of learned rules by model."""
    found: dict[str, list[str]] = {}
    for model, rule, _ in learned:
        found.setdefault(model, []).append(rule)
    return found
