"""The status of a logged-in account; nothing here is secret."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

LoginStatus: TypeAlias = Literal[
    "ready", "refreshing", "retrying", "not_saved", "ending", "refused", "expired", "login_needed"
]
STATES: dict[LoginStatus, str] = {
    "ready": "logged in",
    "refreshing": "refreshing the token",
    "retrying": "the last refresh failed and will be retried; the current token is still valid",
    "not_saved": "the credential file cannot be used; the tokens in memory are",
    "ending": "the refresh token was rejected; the current token is valid until it expires",
    "refused": "refreshing works, but the chat API rejects the tokens",
    "expired": "the token has expired, or expires within 30 s, and refreshing fails and is retried",
    "login_needed": "not logged in",
}


@dataclass(frozen=True, slots=True)
class AccountStatus:
    """The status of one account."""

    account: str
    state: LoginStatus
    message: str
    """The cause of the state, and what to do."""
    usable: bool
    """Whether requests can use the account now."""
    generation: int
    """Number of tokens since the start."""
    expires_at: float | None
    """Unix time at which the current token expires; `usable` becomes false before it."""
    refreshed_at: float | None
    """Unix time of the last refresh by this process."""
    refreshes: int
    failures: int
    """Consecutive failed refreshes."""
    last_error: str | None
    file: str

    def to_json(self) -> dict[str, Any]:
        """Return the status for JSON."""
        return asdict(self)
