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

from qproxy.auth.credential_file import StorageError
from qproxy.auth.identity_client import Identity
from qproxy.wire.credential_format import Tokens, issued
from qproxy.wire.oauth import (
    ENDINGS,
    LONGEST_INTERVAL,
    Device,
    Ended,
    Granted,
    Polled,
    SlowDown,
    Transient,
    proof,
    slower,
)

State: TypeAlias = Literal["starting", "pending", "signed_in", "denied", "expired", "failed", "cancelled"]
_ENDED: dict[str, State] = {"access_denied": "denied", "expired_token": "expired"}


@dataclass(frozen=True, slots=True)
class Progress:
    """A moment of a sign-in; nothing here is secret."""

    state: State
    words: str
    user_code: str = ""
    verification_uri: str = ""
    left: float = 0.0
    """Seconds until the code expires."""

    @property
    def over(self) -> bool:
        return self.state not in ("starting", "pending")


class DeviceFlow:
    """A sign-in: `run` it; `progress` tells how it stands."""

    def __init__(
        self,
        identity: Identity,
        save: Callable[[Tokens], Awaitable[None]],
        *,
        interval: float = 5.0,
        wall: Callable[[], float] = time.time,
        random: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        self._identity = identity
        self._save = save
        self._interval = interval
        self._wall = wall
        self._proof = proof(random(32))
        self._device: Device | None = None
        self._ends = 0.0
        self._state: State = "starting"
        self._words = "Asking the identity server for a code."
        self.begun, self.ended = trio.Event(), trio.Event()
        """There is a code, or none to be had; and it is over."""

    def __repr__(self) -> str:
        return f"<DeviceFlow {self._state}>"

    @property
    def progress(self) -> Progress:
        """How it stands now."""
        if self._device is None:
            return Progress(self._state, self._words)
        left = max(0.0, self._ends - trio.current_time()) if self._state == "pending" else 0.0
        return Progress(self._state, self._words, self._device.user_code, self._device.verification_uri, left)

    async def run(self) -> Progress:
        """Go through with it; to be called once."""
        try:
            begun = await self._identity.begin(self._proof)
            if isinstance(begun, Device):
                self._device, self._ends = begun, trio.current_time() + begun.expires_in
                self._become("pending", "Waiting for the sign-in to be approved in the browser.")
                self.begun.set()
                await self._until_decided(begun)
            else:
                self._become("failed", begun.words)
        except trio.Cancelled:
            if not self.progress.over:
                self._become("cancelled", "The sign-in was cancelled.")
            raise
        finally:
            if not self.progress.over:
                self._become("failed", "The sign-in has crashed.")
            self.begun.set()
            self.ended.set()
        return self.progress

    def _become(self, state: State, words: str) -> None:
        self._state, self._words = state, words

    async def _until_decided(self, device: Device) -> None:
        answer: Polled = Ended("expired_token", ENDINGS["expired_token"])
        with trio.move_on_at(self._ends):
            answer = await self._decision(device)
        if isinstance(answer, Granted):
            # It is granted once; what is left is bounded by the disk's timeouts.
            with trio.CancelScope(shield=True):
                await self._keep(answer)
        elif isinstance(answer, Ended):
            self._become(_ENDED.get(answer.kind, "failed"), answer.words)

    async def _decision(self, device: Device) -> Granted | Ended:
        interval = device.interval or self._interval
        pause = interval
        while True:
            await trio.sleep(pause)
            answer = await self._identity.poll(device, self._proof)
            if isinstance(answer, Granted | Ended):
                return answer
            interval, pause = pace(interval, pause, answer)
            self._words = (
                f"{answer.words} Asking again."
                if isinstance(answer, Transient)
                else "Waiting for the sign-in to be approved in the browser."
            )

    async def _keep(self, granted: Granted) -> None:
        try:
            await self._save(issued(granted, self._wall()))
        except StorageError as error:
            self._become("failed", f"Signed in, but the tokens are lost: {error}")
        else:
            self._become("signed_in", "Signed in.")


def pace(interval: float, pause: float, answer: Polled) -> tuple[float, float]:
    """The interval, and the pause before the next poll, after an answer that decides nothing.  Pure.

    slow_down lasts for the whole flow (RFC 8628 3.5); trouble doubles the pause until an answer comes again.
    """
    if isinstance(answer, SlowDown):
        interval = slower(interval)
    if isinstance(answer, Transient):
        return interval, min(max(pause * 2, interval), max(interval, LONGEST_INTERVAL))
    return interval, interval
