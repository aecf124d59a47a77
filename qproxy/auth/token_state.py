"""The tokens of one logged-in account in memory: their lifetime, state and failures.

No files, no HTTP, no waiting: that is `auth.refresher`. Callers pass the times: `wall_clock` is Unix time,
`now` is Trio's clock.

Both clocks limit a token: a wall clock that is set back does not extend it, and one that is set forward costs
one refresh.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

from qproxy.auth.refresh_schedule import RefreshSchedule, backoff, plan_refresh
from qproxy.auth.status import LoginStatus
from qproxy.wire.credential_format import LIFETIME, TokenSet

FORCE_WINDOW, MAX_FORCED = 600.0, 10
"""Seconds in which a token from a forced refresh that the upstream never accepted is not refreshed by force
again, since the next one would be rejected too; and the maximum number of forced refreshes within them."""


@dataclass(eq=False, slots=True)
class TokenState:
    """One account's tokens and failures."""

    name: str
    refresh_margin: float
    """Approximate seconds before its expiry at which a token is refreshed."""
    tokens: TokenSet | None = None
    generation: int = 0
    """Increases with each new access token."""
    expires: float = 0.0
    """Expiry of the token by Trio's clock."""
    schedule: RefreshSchedule = RefreshSchedule(0.0, 0.0)

    refreshing: bool = False
    refreshes: int = 0
    refreshed_at: float | None = None
    """Unix time."""
    granted_at: float = float("-inf")
    """The same by Trio's clock."""
    failures: int = 0
    """Consecutive failed refreshes."""
    not_before: float = 0.0
    """Earliest time of the next refresh; Trio's clock."""
    last_error: str | None = None
    """The reason of the last failed refresh."""
    storage_error: str | None = None
    """The reason why the store cannot be used."""
    unsaved_tokens: bool = False
    """Whether the tokens are newer than the stored ones."""
    used_refresh_tokens: set[str] = field(default_factory=set, repr=False)
    """Used refresh tokens that the store may still hold, because it could not be written."""
    rejected_refresh_token: str = field(default="", repr=False)
    """A refresh token that was rejected."""
    forced_generation: int = 0
    """The generation of the last forced refresh."""
    forced_at: deque[float] = field(default_factory=lambda: deque(maxlen=MAX_FORCED))
    """Times of forced refreshes, by Trio's clock."""
    accepted: int = 0
    """The generation that the upstream accepted."""
    rejected_by_api: tuple[int, str] = (0, "")
    """The new generation that the upstream rejected, and its message."""

    def seconds_left(self, wall_clock: float, now: float) -> float:
        """Return the seconds until the token expires, by the earlier of both clocks."""
        return (
            float("-inf")
            if self.tokens is None
            else min(self.tokens.seconds_left(wall_clock), self.expires - now)
        )

    def adopt(self, tokens: TokenSet, wall_clock: float, now: float, jitter: float) -> None:
        """Replace the tokens, which may have been issued long ago."""
        if tokens == self.tokens:
            return
        if self.tokens is None or tokens.access_token != self.tokens.access_token:
            self.generation += 1
        left = max(0.0, tokens.seconds_left(wall_clock))
        lifetime = tokens.lifetime or max(left, LIFETIME)
        self.tokens, self.expires = tokens, now + min(left, lifetime)
        self.schedule = plan_refresh(lifetime, self.refresh_margin, jitter)
        self.not_before, self.failures, self.last_error = 0.0, 0, None

    def is_usable(self, left: float) -> bool:
        """Return whether a new request may use the token."""
        return left > self.schedule.margin

    def is_renewable(self) -> bool:
        """Return whether there is a refresh token that was not rejected."""
        return self.tokens is not None and self.tokens.refresh_token not in ("", self.rejected_refresh_token)

    def refresh_due(self, left: float, forced: int | None) -> bool:
        """Return whether to refresh: it is due or, with `forced`, the token still has that generation."""
        return self.is_renewable() and (forced == self.generation or left <= self.schedule.refresh_margin)

    def seconds_until_due(self, left: float, now: float) -> float:
        """Return the seconds until the next refresh."""
        return (
            max(left - self.schedule.refresh_margin, self.not_before - now)
            if self.is_renewable()
            else math.inf
        )

    def can_force_refresh(self, now: float) -> bool:
        """Return whether a token that the upstream rejected may be refreshed early."""
        recent = sum(now - when < FORCE_WINDOW for when in self.forced_at)
        untried = self.forced_generation == self.generation != self.accepted
        return recent < MAX_FORCED and not (recent and untried)

    def record_forced_refresh(self, now: float) -> None:
        """Record that the token came from a forced refresh."""
        self.forced_generation = self.generation
        self.forced_at.append(now)

    def record_accepted(self, generation: int) -> None:
        """Record that the upstream accepted the token of this generation."""
        if generation == self.generation != self.accepted:
            self.accepted = generation
        if self.rejected_by_api[0] == generation:
            self.rejected_by_api = (0, "")

    def record_failure(self, text: str, now: float, jitter: float) -> None:
        """Record a failed refresh, and delay the next one."""
        self.failures += 1
        self.last_error = text
        self.postpone(now, jitter)

    def postpone(self, now: float, jitter: float) -> None:
        """Delay the next refresh, but no longer than until requests start to wait."""
        latest = self.expires - self.schedule.margin
        pause_ends = now + backoff(max(self.failures, 1), jitter)
        self.not_before = min(pause_ends, latest) if now < latest else pause_ends

    def record_tokens(self, sent: str, wall_clock: float, now: float) -> None:
        """Record that the current tokens were obtained for the refresh token `sent`."""
        self.refreshes += 1
        self.refreshed_at, self.granted_at = wall_clock, now
        self.used_refresh_tokens.add(sent)
        self.unsaved_tokens = True

    def record_saved(self) -> None:
        """Record that the tokens are stored."""
        self.unsaved_tokens, self.storage_error = False, None
        self.used_refresh_tokens.clear()

    def secrets(self) -> tuple[str, ...]:
        """Return the strings that must not appear in any text."""
        return (self.tokens.access_token, self.tokens.refresh_token) if self.tokens is not None else ()

    def state(self, left: float) -> LoginStatus:
        """Return the state (`status.STATES`)."""
        dead = self.tokens is not None and not self.is_renewable()
        if self.refreshing:
            return "refreshing"
        if not self.is_usable(left):
            return "login_needed" if self.tokens is None or dead else "expired"
        if self.rejected_by_api[0] == self.generation:
            return "refused"
        if dead:
            return "ending"
        if self.storage_error is not None or self.unsaved_tokens:
            return "not_saved"
        return "retrying" if self.last_error is not None else "ready"

    def message(self, state: LoginStatus) -> str:
        """Return the cause of the state, and what to do."""
        login = f"run `qproxy login --account {self.name}`"
        consequence = (
            "The tokens are in memory only: a restart would require a new login."
            if self.unsaved_tokens
            else "The current token is valid until it expires."
        )
        match state:
            case "login_needed":
                return f"{self.last_error or self.storage_error or 'Not logged in.'} To log in, {login}."
            case "ending":
                reason = self.last_error or "There is no refresh token."
                return f"{reason} The current token is valid until it expires; before that, {login}."
            case "refused":
                reason = self.rejected_by_api[1] or "without a reason"
                return f"Refreshing works, but the chat API rejects the new token as well (401): {reason}"
            case "not_saved":
                return f"{self.storage_error or 'The tokens are not saved.'} {consequence}"
            case "retrying" | "expired":
                return (
                    self.last_error
                    or self.storage_error
                    or "The token has expired or is about to, and is being refreshed."
                )
            case "refreshing":
                return "The token is being refreshed."
            case "ready":
                return "Logged in."
