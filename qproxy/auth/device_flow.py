"""A login by device flow, from requesting a code to stored tokens.

`cli` and the admin routes show the code; `wire.oauth` has the requests.

The rules are those of qwen-code's daemon: 5 s between polls unless the server names another interval, 5 s
more for each slow_down, up to 60; a denial or an expired code ends the flow; a transient error slows the
polls down; and the flow ends when the code expires by the monotonic clock.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import trio

from qproxy.auth.credential_store import StorageError
from qproxy.auth.identity_client import IdentityClient
from qproxy.wire.credential_format import TokenSet, from_response
from qproxy.wire.oauth import (
    GRANT_ERRORS,
    MAX_INTERVAL,
    DeviceAuthorization,
    GrantError,
    PollResult,
    SlowDown,
    TokenResponse,
    TransientError,
    new_pkce,
    slow_down,
)

State: TypeAlias = Literal["starting", "pending", "signed_in", "denied", "expired", "failed", "cancelled"]
_FINISHED: dict[str, State] = {"access_denied": "denied", "expired_token": "expired"}


@dataclass(frozen=True, slots=True)
class LoginProgress:
    """The progress of a login; nothing here is secret."""

    state: State
    message: str
    user_code: str = ""
    verification_uri: str = ""
    seconds_left: float = 0.0
    """Seconds until the code expires."""

    @property
    def finished(self) -> bool:
        return self.state not in ("starting", "pending")


class DeviceFlow:
    """A login by device flow, with its progress."""

    def __init__(
        self,
        identity: IdentityClient,
        save: Callable[[TokenSet], Awaitable[None]],
        *,
        interval: float = 5.0,
        wall_clock: Callable[[], float] = time.time,
        random: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        self._identity = identity
        self._save = save
        self._interval = interval
        self._wall_clock = wall_clock
        self._pkce = new_pkce(random(32))
        self._device: DeviceAuthorization | None = None
        self._expires_at = 0.0
        self._state: State = "starting"
        self._message = "Requesting a code from the identity server."
        self.started, self.finished = trio.Event(), trio.Event()
        """Set once there is a code or the request for one failed; set when the flow has ended."""

    def __repr__(self) -> str:
        return f"<DeviceFlow {self._state}>"

    @property
    def progress(self) -> LoginProgress:
        """Return the current progress."""
        if self._device is None:
            return LoginProgress(self._state, self._message)
        left = max(0.0, self._expires_at - trio.current_time()) if self._state == "pending" else 0.0
        return LoginProgress(
            self._state, self._message, self._device.user_code, self._device.verification_uri, left
        )

    async def run(self) -> LoginProgress:
        """Run the flow, once."""
        try:
            started = await self._identity.authorize_device(self._pkce)
            if isinstance(started, DeviceAuthorization):
                self._device, self._expires_at = started, trio.current_time() + started.expires_in
                self._set_state("pending", "Waiting for approval in the browser.")
                self.started.set()
                await self._poll_until_decided(started)
            else:
                self._set_state("failed", started.message)
        except trio.Cancelled:
            if not self.progress.finished:
                self._set_state("cancelled", "The login was cancelled.")
            raise
        finally:
            if not self.progress.finished:
                self._set_state("failed", "The login failed with an internal error; see the log.")
            self.started.set()
            self.finished.set()
        return self.progress

    def _set_state(self, state: State, text: str) -> None:
        self._state, self._message = state, text

    async def _poll_until_decided(self, device: DeviceAuthorization) -> None:
        answer: PollResult = GrantError("expired_token", GRANT_ERRORS["expired_token"])
        with trio.move_on_at(self._expires_at):
            answer = await self._poll(device)
        if isinstance(answer, TokenResponse):
            # The tokens are granted once; storing them is bounded by the store's timeouts.
            with trio.CancelScope(shield=True):
                await self._save_tokens(answer)
        elif isinstance(answer, GrantError):
            self._set_state(_FINISHED.get(answer.kind, "failed"), answer.message)

    async def _poll(self, device: DeviceAuthorization) -> TokenResponse | GrantError:
        interval = device.interval or self._interval
        pause = interval
        while True:
            await trio.sleep(pause)
            answer = await self._identity.poll_token(device, self._pkce)
            if isinstance(answer, TokenResponse | GrantError):
                return answer
            interval, pause = next_poll(interval, pause, answer)
            self._message = (
                f"{answer.message} Retrying."
                if isinstance(answer, TransientError)
                else "Waiting for approval in the browser."
            )

    async def _save_tokens(self, granted: TokenResponse) -> None:
        try:
            await self._save(from_response(granted, self._wall_clock()))
        except StorageError as error:
            self._set_state("failed", f"Logged in, but the tokens could not be stored: {error}")
        else:
            self._set_state("signed_in", "Logged in.")


def next_poll(interval: float, pause: float, answer: PollResult) -> tuple[float, float]:
    """Return the interval and the delay of the next poll, after an undecided response. Pure.

    slow_down applies to the whole flow (RFC 8628 3.5); a transient error doubles the delay until the next
    response.
    """
    if isinstance(answer, SlowDown):
        interval = slow_down(interval)
    if isinstance(answer, TransientError):
        return interval, min(max(pause * 2, interval), max(interval, MAX_INTERVAL))
    return interval, interval
