"""One sign-in by the device flow, from asking for a code to tokens that are saved.

Here: waiting and deciding.  Not here: who shows the code (`cli`, an admin route) and what the requests look like
(`wire.oauth`).

The rules are those of qwen-code's daemon: 5 s between polls unless the server says otherwise, 5 s more for each
slow_down, up to 60; a denial or an expired code is the end; trouble on the way is not, but is asked about less often; and
when the code's time is up by the monotonic clock, so is the flow's.
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
    """A moment of a sign-in; nothing here is secret."""

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
    """A sign-in: `run` it; `progress` tells how it stands."""

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
        self._message = "Asking the identity server for a code."
        self.started, self.finished = trio.Event(), trio.Event()
        """There is a code, or none to be had; and it is over."""

    def __repr__(self) -> str:
        return f"<DeviceFlow {self._state}>"

    @property
    def progress(self) -> LoginProgress:
        """How it stands now."""
        if self._device is None:
            return LoginProgress(self._state, self._message)
        left = max(0.0, self._expires_at - trio.current_time()) if self._state == "pending" else 0.0
        return LoginProgress(
            self._state, self._message, self._device.user_code, self._device.verification_uri, left
        )

    async def run(self) -> LoginProgress:
        """Go through with it; to be called once."""
        try:
            started = await self._identity.authorize_device(self._pkce)
            if isinstance(started, DeviceAuthorization):
                self._device, self._expires_at = started, trio.current_time() + started.expires_in
                self._set_state("pending", "Waiting for the sign-in to be approved in the browser.")
                self.started.set()
                await self._poll_until_decided(started)
            else:
                self._set_state("failed", started.message)
        except trio.Cancelled:
            if not self.progress.finished:
                self._set_state("cancelled", "The sign-in was cancelled.")
            raise
        finally:
            if not self.progress.finished:
                self._set_state("failed", "The sign-in has crashed.")
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
            # It is granted once; what is left is bounded by the disk's timeouts.
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
                f"{answer.message} Asking again."
                if isinstance(answer, TransientError)
                else "Waiting for the sign-in to be approved in the browser."
            )

    async def _save_tokens(self, granted: TokenResponse) -> None:
        try:
            await self._save(from_response(granted, self._wall_clock()))
        except StorageError as error:
            self._set_state("failed", f"Signed in, but the tokens are lost: {error}")
        else:
            self._set_state("signed_in", "Signed in.")


def next_poll(interval: float, pause: float, answer: PollResult) -> tuple[float, float]:
    """The interval, and the pause before the next poll, after an answer that decides nothing.  Pure.

    slow_down lasts for the whole flow (RFC 8628 3.5); trouble doubles the pause until an answer comes again.
    """
    if isinstance(answer, SlowDown):
        interval = slow_down(interval)
    if isinstance(answer, TransientError):
        return interval, min(max(pause * 2, interval), max(interval, MAX_INTERVAL))
    return interval, interval
