"""What one signed-in account holds: its tokens, how long they last, and what has gone wrong.

Here: memory, and what follows from it (how long, which state, which words).  Not here: files, HTTP, waiting
(`auth.refresher`).  Times come in: `wall_clock` is Unix time, `now` Trio's clock.

Two clocks: the wall clock says when a token ends, and Trio's clock, from the moment the token came, has a say too, so a
wall clock that is set back does not make a token last longer, and one that is set forward costs a refresh and no more.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

from qproxy.auth.refresh_schedule import RefreshSchedule, backoff, plan_refresh
from qproxy.auth.status import LoginStatus
from qproxy.wire.credential_format import LIFETIME, TokenSet

FORCE_WINDOW, MAX_FORCED = 600.0, 10
"""Seconds in which a token that a forced refresh brought, and that chat has never let in, is not replaced by force: chat would
refuse the next one too; and forced refreshes in them at most, whatever chat lets in between."""


@dataclass(eq=False, slots=True)
class TokenState:
    """One account's tokens and troubles."""

    name: str
    refresh_margin: float
    """Seconds before its end at which a token is renewed, more or less."""
    tokens: TokenSet | None = None
    generation: int = 0
    """Counts up with each new access token."""
    expires: float = 0.0
    """When the token ends by Trio's clock."""
    schedule: RefreshSchedule = RefreshSchedule(0.0, 0.0)

    refreshing: bool = False
    refreshes: int = 0
    refreshed_at: float | None = None
    """Unix time."""
    granted_at: float = float("-inf")
    """The same, by Trio's clock."""
    failures: int = 0
    """Refreshes that failed in a row."""
    not_before: float = 0.0
    """Trio's clock; no refresh is tried sooner."""
    last_error: str | None = None
    """Why the last refresh failed."""
    storage_error: str | None = None
    """Why the file cannot be used."""
    unsaved_tokens: bool = False
    """The tokens are newer than the file's."""
    used_refresh_tokens: set[str] = field(default_factory=set, repr=False)
    """Refresh tokens that were used up while the file could not be written, and which it may still hold."""
    rejected_refresh_token: str = field(default="", repr=False)
    """A refresh token that was refused."""
    forced_generation: int = 0
    """The generation that the last forced refresh brought."""
    forced_at: deque[float] = field(default_factory=lambda: deque(maxlen=MAX_FORCED))
    """When forced refreshes brought tokens, by Trio's clock."""
    accepted: int = 0
    """The generation that chat has let in."""
    rejected_by_api: tuple[int, str] = (0, "")
    """The generation that chat refuses though it is new, and chat's words."""

    def seconds_left(self, wall_clock: float, now: float) -> float:
        """Seconds until the token ends, by the clock that says sooner."""
        return (
            float("-inf")
            if self.tokens is None
            else min(self.tokens.seconds_left(wall_clock), self.expires - now)
        )

    def adopt(self, tokens: TokenSet, wall_clock: float, now: float, jitter: float) -> None:
        """Hold these tokens from now on, issued just now or long ago."""
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
        """Whether a request may begin with the token."""
        return left > self.schedule.margin

    def is_renewable(self) -> bool:
        """Whether there is a refresh token that was not refused."""
        return self.tokens is not None and self.tokens.refresh_token not in ("", self.rejected_refresh_token)

    def refresh_due(self, left: float, forced: int | None) -> bool:
        """Whether to refresh: it is time, or, with `forced`, the token is still the one of that generation."""
        return self.is_renewable() and (forced == self.generation or left <= self.schedule.refresh_margin)

    def seconds_until_due(self, left: float, now: float) -> float:
        """Seconds until a refresh is to be tried, as things are."""
        return (
            max(left - self.schedule.refresh_margin, self.not_before - now)
            if self.is_renewable()
            else math.inf
        )

    def can_force_refresh(self, now: float) -> bool:
        """Whether a token that chat refuses is refreshed before its time."""
        recent = sum(now - when < FORCE_WINDOW for when in self.forced_at)
        untried = self.forced_generation == self.generation != self.accepted
        return recent < MAX_FORCED and not (recent and untried)

    def record_forced_refresh(self, now: float) -> None:
        """A forced refresh has brought the token."""
        self.forced_generation = self.generation
        self.forced_at.append(now)

    def record_accepted(self, generation: int) -> None:
        """Chat has let the token of this generation in."""
        if generation == self.generation != self.accepted:
            self.accepted = generation
        if self.rejected_by_api[0] == generation:
            self.rejected_by_api = (0, "")

    def record_failure(self, text: str, now: float, jitter: float) -> None:
        """A refresh has failed; the next one is put off."""
        self.failures += 1
        self.last_error = text
        self.postpone(now, jitter)

    def postpone(self, now: float, jitter: float) -> None:
        """Try no sooner than in a while, but once more when requests begin to wait."""
        latest = self.expires - self.schedule.margin
        pause_ends = now + backoff(max(self.failures, 1), jitter)
        self.not_before = min(pause_ends, latest) if now < latest else pause_ends

    def record_tokens(self, sent: str, wall_clock: float, now: float) -> None:
        """A refresh has brought the tokens that were taken up just now, for the refresh token `sent`."""
        self.refreshes += 1
        self.refreshed_at, self.granted_at = wall_clock, now
        self.used_refresh_tokens.add(sent)
        self.unsaved_tokens = True

    def record_saved(self) -> None:
        """The file holds the tokens."""
        self.unsaved_tokens, self.storage_error = False, None
        self.used_refresh_tokens.clear()

    def secrets(self) -> tuple[str, ...]:
        """What must appear in no text."""
        return (self.tokens.access_token, self.tokens.refresh_token) if self.tokens is not None else ()

    def state(self, left: float) -> LoginStatus:
        """One word for people (`status.STATES`)."""
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
        """What is the matter, and what to do about it."""
        login = f"run `qproxy login --account {self.name}`"
        consequence = (
            "The tokens live in memory only: a restart would need a new sign-in."
            if self.unsaved_tokens
            else "The token in use stays good until it ends."
        )
        match state:
            case "login_needed":
                return (
                    f"{self.last_error or self.storage_error or 'Nobody is signed in.'} To sign in, {login}."
                )
            case "ending":
                reason = self.last_error or "There is no refresh token."
                return f"{reason} The token in use is good until it ends; before that, {login}."
            case "refused":
                reason = self.rejected_by_api[1] or "without a reason"
                return f"Refreshing works, but chat says 401 to the new token as well: {reason}"
            case "not_saved":
                return f"{self.storage_error or 'The tokens are not saved.'} {consequence}"
            case "retrying" | "expired":
                return (
                    self.last_error
                    or self.storage_error
                    or "The token has ended, or is about to, and is being renewed."
                )
            case "refreshing":
                return "A new token is being fetched."
            case "ready":
                return "Signed in."
