"""How the accounts are, for `qproxy accounts`: from the settings and from the board that the servers write on.

Pure: what the settings say, what the board says, and the time in; rows out.  Nothing here is secret: names,
hosts, states, times, counts, and what a server said about a quota.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import urlsplit

from qproxy.accounts.shared_state import Limits, Standing, left
from qproxy.config.accounts import AccountConfig


@dataclass(frozen=True, slots=True)
class Row:
    """One account.  Times are Unix time."""

    name: str
    kind: str
    plan: str | None
    host: str | None
    state: str
    """ready, paced, resting, or unused where no server has asked it yet; for a login that cannot be
    used, its state."""
    words: str
    """The state for people."""
    expires_at: float | None
    """When the token in use ends; it is renewed before.  A key does not end."""
    cool_down_until: float | None
    models_refused: Mapping[str, float]
    """Models that it is not asked for, and until when."""
    quota: str | None
    """What its server last said about its quota."""
    quota_reset_at: float | None
    in_flight: int
    last_minute: int
    requests: int
    failures: int
    last_error: str | None
    last_error_at: float | None

    def fields(self) -> dict[str, Any]:
        return asdict(self)


def rows(accounts: Sequence[AccountConfig], standings: Mapping[str, Standing], wall: float) -> list[Row]:
    """A row for every account of the settings."""
    return [_row(account, standings.get(account.identity), wall) for account in accounts]


def _row(account: AccountConfig, standing: Standing | None, wall: float) -> Row:
    known = standing or Standing()
    rest = known.rests.get("")
    resting = rest is not None and rest.until > wall
    limits = Limits(account.rpm or None, account.tpm or None)
    refused = {model: item.until for model, item in known.rests.items() if model and item.until > wall}
    login = known.login
    if login is not None and not login.usable:
        state, words = login.state, login.words
    elif rest is not None and resting:
        state, words = "resting", f"resting until {moment(rest.until, wall)}: {rest.why}"
    elif standing is None:
        state, words = "unused", "not used yet"
    elif any(left(known, what, limit, wall).wait(1, wall) for what, limit in limits.pairs()):
        state, words = "paced", "at its limit for this minute"
    else:
        state, words = "ready", "ready"
    if refused:
        words += f"; not for {', '.join(sorted(refused)[:5])}"
    return Row(
        name=account.name,
        kind=account.kind,
        plan=account.plan,
        host=urlsplit(account.base_url or "").hostname,
        state=state,
        words=words,
        expires_at=login.expires_at if login is not None else None,
        cool_down_until=rest.until if rest is not None and resting else None,
        models_refused=refused,
        quota=known.quota,
        quota_reset_at=rest.reset if rest is not None else None,
        in_flight=known.under_way(wall),
        last_minute=known.last_minute(wall),
        requests=known.requests,
        failures=known.failures,
        last_error=known.last_error,
        last_error_at=known.last_error_at,
    )


def moment(when: float, wall: float) -> str:
    """A time for people, in UTC: without the day where that is today's."""
    when = round(when)  # it has been through two clocks
    day = "" if int(when // 86400) == int(wall // 86400) else "%Y-%m-%d "
    return time.strftime(f"{day}%H:%M:%S UTC", time.gmtime(when))
