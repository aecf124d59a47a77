"""The states of accounts for all processes of all machines.

What happens is published at once, counts each ten seconds, and what happens elsewhere is read after a message
and each second. Limits per minute and slots are those of `subjects`, as API keys have them. While the server
cannot be used, each process goes on with what it knew last; what happens meanwhile is published afterwards.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import count

import trio

from qproxy.accounts.cooldowns import Cooldown
from qproxy.accounts.shared_state import AccountGrant, AccountState, AccountStateDelta, StateStoreError
from qproxy.backends.redis.account_copy import AccountCopy
from qproxy.backends.redis.account_fields import cooldown_text
from qproxy.backends.redis.client import RedisClient
from qproxy.backends.redis.errors import RedisError
from qproxy.backends.redis.exchange import IN_FLIGHT, BudgetLimit
from qproxy.backends.redis.names import account_name
from qproxy.backends.redis.script import Script, load_script
from qproxy.backends.redis.server_clock import ServerClock
from qproxy.backends.redis.subject import Subject
from qproxy.backends.redis.subjects import Subjects
from qproxy.backends.redis.subscriber import Subscriber, Subscription
from qproxy.limits.token_bucket import REQUESTS, TOKENS, Amounts

ACCOUNTS = load_script("accounts")
CHANNEL = "accounts"
MAX_ROUNDS = 3
"""Of commands in an exchange: to learn the server's time, to write, to offer what the server has lost."""


class RedisAccountState:
    """The account states of one process."""

    counts_in_flight = True

    def __init__(
        self,
        client: RedisClient,
        subjects: Subjects,
        subscriber: Subscriber,
        *,
        script: Script = ACCOUNTS,
        wall_clock: Callable[[], float] = time.time,
        clock: Callable[[], float] = trio.current_time,
    ) -> None:
        self._client = client
        self._subjects = subjects
        self._subscriber = subscriber
        self._subscription: Subscription | None = None
        self._script = script
        self._wall_clock = wall_clock
        self._clock = clock
        self._server_clock = ServerClock()
        self._numbers = count(1)
        self._copies: dict[str, AccountCopy] = {}
        self._limited: dict[str, Subject] = {}
        self._closed = trio.Event()
        client.on_connect.append(self._resend)

    def __repr__(self) -> str:
        return f"<RedisAccountState {len(self._copies)} accounts>"

    @property
    def is_settled(self) -> bool:
        """Return whether the server knows all that happened here."""
        return all(copy.is_settled for copy in self._copies.values())

    async def acquire(
        self, identity: str, limits: Amounts, amounts: Amounts, max_in_flight: int | None
    ) -> AccountGrant:
        subject = self._limits(identity, limits, max_in_flight)
        grant = await self._subjects.reserve(subject, {**amounts, IN_FLIGHT: 1})
        at_capacity = not grant.granted and subject.exhausted is not None
        return AccountGrant(grant.granted, grant.available, at_capacity, has_slot=grant.granted)

    def release(self, identity: str) -> None:
        subject = self._limited[identity]
        subject.hold({IN_FLIGHT: 1}, -1)
        self._subjects.settle(subject)

    async def claim_probe(self, identity: str, cooldowns: Mapping[str, Cooldown]) -> bool:
        copy = self._copy(identity)
        if not self._server_clock.is_known:
            with trio.move_on_after(self._client.timeout):
                await self._send([copy])
        if not self._server_clock.is_known:
            return True
        offset, sent_at = self._server_clock.offset, self._wall_clock()
        claims = [
            part
            for key, cooldown in cooldowns.items()
            for part in ("claim", key, cooldown_text(cooldown, offset))
        ]
        try:
            reply = await self._client.run_script(
                self._script, copy.key, *copy.arguments(0, "event", *claims)
            )
        except RedisError:  # a probe too many does no harm
            return True
        copy.apply(reply, sent_at)
        return bool(reply[0])

    async def exchange(self, delta: Mapping[str, AccountStateDelta]) -> Mapping[str, AccountState]:
        copies = {identity: self._copy(identity) for identity in delta}
        for identity, item in delta.items():
            copies[identity].add(item)
            self._return(identity, item)
        with trio.move_on_after(self._client.timeout):
            if self._client.is_starting:
                await self._client.wait_connected()
            await self._send([*copies.values()])
        return {identity: self._with_levels(identity, copy.state()) for identity, copy in copies.items()}

    async def wait_change(self, seconds: float) -> None:
        if self._subscription is None:
            self._subscription = self._subscriber.subscribe(CHANNEL)
        ends = trio.current_time() + seconds
        names = {copy.name for copy in self._copies.values()}
        while trio.current_time() < ends:
            changes = await self._subscription.wait(ends - trio.current_time())
            messages = [message.partition(" ") for message in changes.messages]
            if changes.everything or any(
                name in names and process != self._client.process for name, _, process in messages
            ):
                return

    async def load(self, identities: Iterable[str]) -> Mapping[str, AccountState]:
        states = {}
        try:
            for identity in identities:
                copy, sent_at = self._copy(identity), self._wall_clock()
                command = copy.arguments(0, "counts")
                copy.apply(await self._client.run_script(self._script, copy.key, *command), sent_at)
                if copy.exists:
                    levels = await self._read_levels(copy.name)
                    states[identity] = replace(copy.state(), bucket_levels=levels)
        except RedisError as error:
            raise StateStoreError(f"shared_state: {error}") from None
        return states

    async def aclose(self) -> None:
        """Send what the server does not know, within the time limit of a request."""
        with trio.move_on_after(self._client.timeout):
            while self._client.is_connected and not self.is_settled:
                left = [copy for copy in self._copies.values() if not copy.is_settled]
                await self._send(left, must_write=True)
                await trio.sleep(self._client.timeout / 10)
        self._closed.set()

    async def wait_closed(self) -> None:
        """Wait until `aclose` has ended, if there is anything to close; the caller limits the time."""
        if self._copies:
            await self._closed.wait()

    async def _send(self, copies: Sequence[AccountCopy], *, must_write: bool = False) -> None:
        """Publish and read, and wait for the replies."""
        for _ in range(MAX_ROUNDS):
            sent = [copy.send(must_write=must_write) for copy in copies]
            for event in sent:
                if event is not None:
                    await event.wait()
            copies = [copy for copy in copies if copy.is_due]
            if not copies:
                return

    def _resend(self) -> None:
        for copy in self._copies.values():
            copy.resend()

    def _copy(self, identity: str) -> AccountCopy:
        copy = self._copies.get(identity)
        if copy is None:
            name = account_name(identity)
            copy = self._copies[identity] = AccountCopy(
                self._client,
                self._script,
                f"{self._client.prefix}:{{a:{name}}}:s",
                name,
                channel=self._subscriber.channel(CHANNEL),
                numbers=self._numbers,
                server_clock=self._server_clock,
                wall_clock=self._wall_clock,
                clock=self._clock,
            )
        return copy

    def _limits(self, identity: str, limits: Amounts, max_in_flight: int | None) -> Subject:
        slots = BudgetLimit(IN_FLIGHT, IN_FLIGHT, max_in_flight or 0)
        subject = self._limited[identity] = self._subjects.get(account_name(identity), limits, [slots])
        return subject

    def _return(self, identity: str, delta: AccountStateDelta) -> None:
        """Return amounts that were taken and not used."""
        subject = self._limited.get(identity)
        if subject is not None and any(delta.released.values()):
            subject.take({unit: -amount for unit, amount in delta.released.items()})
            self._subjects.settle(subject)

    def _with_levels(self, identity: str, state: AccountState) -> AccountState:
        subject = self._limited.get(identity)
        if subject is None:
            return state
        now = self._wall_clock()
        levels = {unit: (amount, now) for unit, amount in self._subjects.available(subject).items()}
        return replace(state, bucket_levels=levels)

    async def _read_levels(self, name: str) -> Mapping[str, tuple[float, float]]:
        """Return the levels that the server has. Raises a RedisError."""
        units = (REQUESTS, TOKENS)
        fields = ("at", *(f"l:{unit}" for unit in units))
        at, *levels = await self._client.request("HMGET", f"{self._client.prefix}:{{a:{name}}}", *fields)
        if at is None:
            return {}
        time = float(at) - self._server_clock.offset
        return {unit: (float(level), time) for unit, level in zip(units, levels, strict=True) if level}
