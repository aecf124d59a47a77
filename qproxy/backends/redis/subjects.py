"""All subjects of one kind, and the task that sends what is not sent at once.

While the server cannot be used the policy decides, and what it grants is counted when the server is back.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from typing import Literal, TypeAlias

import trio

from qproxy.backends.redis.client import RedisClient
from qproxy.backends.redis.exchange import BudgetLimit, Exchange, Exhausted
from qproxy.backends.redis.script import Script
from qproxy.backends.redis.share import Share
from qproxy.backends.redis.subject import SETTLE_SECONDS, Subject
from qproxy.limits.token_bucket import Amounts, RateLimitGrant
from qproxy.wire.errors import QproxyError

RENEWAL_SECONDS = 10.0
"""After which the lease of what is held is renewed; it ends after 30 s (`limits.lua`)."""
IDLE_SECONDS = 600.0
"""After which a subject that is not used is dropped here."""
MAX_ACTIVE = 100_000
"""Subjects with changes that wait for the server; each has the sums of its changes, not all of them."""
log = logging.getLogger("qproxy.backends")
Policy: TypeAlias = Literal["share", "closed", "open"]


class Subjects:
    """The subjects that this process knows, by their names on the server."""

    def __init__(
        self,
        client: RedisClient,
        script: Script,
        kind: str,
        policy: Policy,
        *,
        clock: Callable[[], float] = trio.current_time,
    ) -> None:
        """`kind` is part of the keys; `policy` decides while the server cannot be used."""
        self.client = client
        self._script = script
        self._kind = kind
        self._policy = policy
        self._clock = clock
        self._numbers = count(1)
        self._by_name: dict[str, Subject] = {}
        self._active: dict[Subject, None] = {}
        """Those whose state the server does not know completely."""
        self._dropped = 0
        client.on_connect.append(self._resend)

    def __repr__(self) -> str:
        return f"<Subjects {self._kind}: {len(self._by_name)}, {len(self._active)} active>"

    @property
    def active(self) -> int:
        """Return the number of subjects whose state the server does not know completely."""
        return len(self._active)

    def get(self, name: str, limits: Amounts, budgets: Sequence[BudgetLimit] = ()) -> Subject:
        """Return a subject; other limits apply from now on."""
        subject = self._by_name.get(name)
        if subject is None:
            key = f"{self.client.prefix}:{{{self._kind}:{name}}}"
            subject = self._by_name[name] = Subject(
                self.client, self._script, key, limits, budgets, numbers=self._numbers, clock=self._clock
            )
        elif subject.limits != limits or subject.budgets != budgets:
            subject.set_limits(limits, budgets)
        subject.found_at = self._clock()
        return subject

    async def reserve(
        self, subject: Subject, amounts: Amounts, *, unchecked: str | None = None
    ) -> RateLimitGrant:
        """Take the amounts, and hold those of budgets, or nothing if a limit does not allow one.

        Raises a QproxyError with status 503 if the policy or a budget requires the server, and it cannot be
        used.
        """
        self._activate(subject)
        granted = None
        with trio.move_on_after(self.client.timeout):
            if self.client.is_starting:
                await self.client.wait_connected()
            granted = await subject.reserve(amounts, unchecked=unchecked)
        if granted is None:
            return self._decide_alone(subject, amounts)
        return RateLimitGrant(granted, subject.available())

    def available(self, subject: Subject) -> Amounts:
        """Return what is left of each level, of this process's share while the server cannot be used."""
        return subject.available() if subject.share is None else subject.share.available(self._clock())

    def settle(self, subject: Subject) -> None:
        """Send what has changed. Never waits."""
        self._activate(subject)
        subject.settle()

    def renew(self, subject: Subject) -> None:
        """Send a subject's state, also if nothing has changed. Never waits."""
        self._activate(subject)
        subject.flush(renew=True)

    async def run(self) -> None:
        """Send what is not sent at once, until cancelled."""
        while True:
            await trio.sleep(SETTLE_SECONDS)
            self._flush()

    async def aclose(self) -> None:
        """Send what the server does not know, within the time limit of a request."""
        with trio.move_on_after(self.client.timeout):
            while self.client.is_connected and self._active:
                self._flush()
                await trio.sleep(self.client.timeout / 10)

    def unsettled(self) -> Iterator[tuple[str, Exchange]]:
        """Yield the exchanges that the server lacks, by their keys."""
        for subject in self._active:
            for exchange in subject.unsettled():
                yield subject.key, exchange

    def _activate(self, subject: Subject) -> None:
        """Keep a subject until the server knows its state; beyond `MAX_ACTIVE` the oldest one is dropped."""
        self._active[subject] = None
        if len(self._active) > MAX_ACTIVE:
            oldest = next(iter(self._active))
            del self._active[oldest]
            if self._dropped == 0:
                log.error(
                    "shared state: more than %d subjects have changes: the oldest are dropped", MAX_ACTIVE
                )
            self._dropped += 1

    def _flush(self) -> None:
        now = self._clock()
        for subject in [*self._active]:
            subject.flush(renew=bool(subject.held) and now - subject.exchanged_at >= RENEWAL_SECONDS)
            if subject.is_settled:
                del self._active[subject]
        if len(self._by_name) > len(self._active):
            name, subject = next(iter(self._by_name.items()))
            del self._by_name[name]  # one a round: the oldest goes, or becomes the youngest
            if subject in self._active or now - subject.found_at < IDLE_SECONDS:
                self._by_name[name] = subject

    def _resend(self) -> None:
        for subject in self._active:
            subject.resend()

    def _decide_alone(self, subject: Subject, amounts: Amounts) -> RateLimitGrant:
        """Decide by the policy; the server counts it later."""
        if self._policy == "closed":
            raise QproxyError(
                "The shared state cannot be used (shared_state_policy is closed). Retry in 2 s.",
                status=503,
                code="shared_state_unavailable",
                retry_after=2,
            )
        now = self._clock()
        if subject.share is None:
            levels, processes = subject.levels, self.client.processes
            subject.share = Share(levels, subject.budgets, subject.usage, processes, now)
        share, granted = subject.share, True
        if self._policy == "share":
            if not share.knows_budgets:
                message = "The budgets of this API key cannot be read from the shared state. Retry in 5 s."
                raise QproxyError(message, status=503, code="budget_unavailable", retry_after=5)
            row = share.exhausted(subject.held)
            subject.reject(None if row is None else Exhausted(row, 0.0, time.time()))
            granted = row is None and share.reserve(amounts, now)
        if granted:
            subject.take(amounts)
            subject.hold(amounts)
        return RateLimitGrant(granted, share.available(now))
