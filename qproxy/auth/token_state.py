"""What one signed-in account holds: its tokens, how long they last, and what has gone wrong.

Here: memory, and what follows from it (how long, which state, which words).  Not here: files, HTTP, waiting
(`auth.keeper`).  Times come in: `wall` is Unix time, `now` Trio's clock.

Two clocks: the wall clock says when a token ends, and Trio's clock, from the moment the token came, has a say too, so a
wall clock that is set back does not make a token last longer, and one that is set forward costs a refresh and no more.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

from qproxy.auth.refresh_schedule import Schedule, backoff, schedule
from qproxy.auth.status import State
from qproxy.wire.credential_format import LIFETIME, Tokens

FORCE_WINDOW, MAX_FORCED = 600.0, 10
"""Seconds in which a token that a forced refresh brought, and that chat has never let in, is not replaced by force: chat would
refuse the next one too; and forced refreshes in them at most, whatever chat lets in between."""


@dataclass(eq=False, slots=True)
class Holding:
    """One account's tokens and troubles."""

    name: str
    ahead: float
    """Seconds before its end at which a token is renewed, more or less."""
    tokens: Tokens | None = None
    generation: int = 0
    """Counts up with each new access token."""
    ends: float = 0.0
    """When the token ends by Trio's clock."""
    schedule: Schedule = Schedule(0.0, 0.0)

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
    said: str | None = None
    """Why the last refresh failed."""
    disk: str | None = None
    """Why the file cannot be used."""
    unsaved: bool = False
    """The tokens are newer than the file's."""
    spent: set[str] = field(default_factory=set, repr=False)
    """Refresh tokens that were used up while the file could not be written, and which it may still hold."""
    dead: str = field(default="", repr=False)
    """A refresh token that was refused."""
    forced: int = 0
    """The generation that the last forced refresh brought."""
    forced_at: deque[float] = field(default_factory=lambda: deque(maxlen=MAX_FORCED))
    """When forced refreshes brought tokens, by Trio's clock."""
    accepted: int = 0
    """The generation that chat has let in."""
    chat: tuple[int, str] = (0, "")
    """The generation that chat refuses though it is new, and chat's words."""

    def left(self, wall: float, now: float) -> float:
        """Seconds until the token ends, by the clock that says sooner."""
        return float("-inf") if self.tokens is None else min(self.tokens.left(wall), self.ends - now)

    def take_up(self, tokens: Tokens, wall: float, now: float, spread: float) -> None:
        """Hold these tokens from now on, issued just now or long ago."""
        if tokens == self.tokens:
            return
        if self.tokens is None or tokens.access_token != self.tokens.access_token:
            self.generation += 1
        left = max(0.0, tokens.left(wall))
        lifetime = tokens.lifetime or max(left, LIFETIME)
        self.tokens, self.ends = tokens, now + min(left, lifetime)
        self.schedule = schedule(lifetime, self.ahead, spread)
        self.not_before, self.failures, self.said = 0.0, 0, None

    def usable(self, left: float) -> bool:
        """Whether a request may begin with the token."""
        return left > self.schedule.margin

    def renewable(self) -> bool:
        """Whether there is a refresh token that was not refused."""
        return self.tokens is not None and self.tokens.refresh_token not in ("", self.dead)

    def wanted(self, left: float, forced: int | None) -> bool:
        """Whether to refresh: it is time, or, with `forced`, the token is still the one of that generation."""
        return self.renewable() and (forced == self.generation or left <= self.schedule.ahead)

    def until_due(self, left: float, now: float) -> float:
        """Seconds until a refresh is to be tried, as things are."""
        return max(left - self.schedule.ahead, self.not_before - now) if self.renewable() else math.inf

    def may_force(self, now: float) -> bool:
        """Whether a token that chat refuses is refreshed before its time."""
        recent = sum(now - when < FORCE_WINDOW for when in self.forced_at)
        untried = self.forced == self.generation != self.accepted
        return recent < MAX_FORCED and not (recent and untried)

    def note_forced(self, now: float) -> None:
        """A forced refresh has brought the token."""
        self.forced = self.generation
        self.forced_at.append(now)

    def note_accepted(self, generation: int) -> None:
        """Chat has let the token of this generation in."""
        if generation == self.generation != self.accepted:
            self.accepted = generation
        if self.chat[0] == generation:
            self.chat = (0, "")

    def failed(self, words: str, now: float, spread: float) -> None:
        """A refresh has failed; the next one is put off."""
        self.failures += 1
        self.said = words
        self.put_off(now, spread)

    def put_off(self, now: float, spread: float) -> None:
        """Try no sooner than in a while, but once more when requests begin to wait."""
        latest = self.ends - self.schedule.margin
        pause_ends = now + backoff(max(self.failures, 1), spread)
        self.not_before = min(pause_ends, latest) if now < latest else pause_ends

    def granted(self, sent: str, wall: float, now: float) -> None:
        """A refresh has brought the tokens that were taken up just now, for the refresh token `sent`."""
        self.refreshes += 1
        self.refreshed_at, self.granted_at = wall, now
        self.spent.add(sent)
        self.unsaved = True

    def saved(self) -> None:
        """The file holds the tokens."""
        self.unsaved, self.disk = False, None
        self.spent.clear()

    def secrets(self) -> tuple[str, ...]:
        """What must appear in no text."""
        return (self.tokens.access_token, self.tokens.refresh_token) if self.tokens is not None else ()

    def state(self, left: float) -> State:
        """One word for people (`status.STATES`)."""
        dead = self.tokens is not None and not self.renewable()
        if self.refreshing:
            return "refreshing"
        if not self.usable(left):
            return "login_needed" if self.tokens is None or dead else "expired"
        if self.chat[0] == self.generation:
            return "refused"
        if dead:
            return "ending"
        if self.disk is not None or self.unsaved:
            return "not_saved"
        return "retrying" if self.said is not None else "ready"

    def words(self, state: State) -> str:
        """What is the matter, and what to do about it."""
        login = f"run `qproxy login --account {self.name}`"
        consequence = (
            "The tokens live in memory only: a restart would need a new sign-in."
            if self.unsaved
            else "The token in use stays good until it ends."
        )
        match state:
            case "login_needed":
                return f"{self.said or self.disk or 'Nobody is signed in.'} To sign in, {login}."
            case "ending":
                reason = self.said or "There is no refresh token."
                return f"{reason} The token in use is good until it ends; before that, {login}."
            case "refused":
                reason = self.chat[1] or "without a reason"
                return f"Refreshing works, but chat says 401 to the new token as well: {reason}"
            case "not_saved":
                return f"{self.disk or 'The tokens are not saved.'} {consequence}"
            case "retrying" | "expired":
                return self.said or self.disk or "The token has ended, or is about to, and is being renewed."
            case "refreshing":
                return "A new token is being fetched."
            case "ready":
                return "Signed in."
