"""How a signed-in account is doing, in words for people: nothing here is secret."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

LoginStatus: TypeAlias = Literal[
    "ready", "refreshing", "retrying", "not_saved", "ending", "refused", "expired", "login_needed"
]
STATES: dict[LoginStatus, str] = {
    "ready": "signed in",
    "refreshing": "a new token is being fetched",
    "retrying": "the last refresh failed and is tried again; the token in use is still good",
    "not_saved": "the credential file cannot be used; the tokens in memory are",
    "ending": "the refresh token was refused; the token in use is good until it ends",
    "refused": "refreshing works, but chat refuses the tokens",
    "expired": "the token has ended, or has less than 30 s left, and refreshing it fails, which is tried again",
    "login_needed": "nobody is signed in, or no longer",
}


@dataclass(frozen=True, slots=True)
class AccountStatus:
    """A moment of one account."""

    account: str
    state: LoginStatus
    message: str
    """What is the matter, and what to do about it."""
    usable: bool
    """Whether a request may be made with it now."""
    generation: int
    """How many tokens it has had since the start."""
    expires_at: float | None
    """Unix time at which the token in use ends; `usable` ends before it."""
    refreshed_at: float | None
    """Unix time of the last refresh by this process."""
    refreshes: int
    failures: int
    """Refreshes that failed in a row."""
    last_error: str | None
    file: str

    def to_json(self) -> dict[str, Any]:
        """The status as JSON has it."""
        return asdict(self)
