"""The state of one account as this process knows it: what the server had, and what it has not confirmed yet.

At most one write is in flight. It has a number; if it gets no reply it is sent again, unchanged, before any
other one, and the server executes it once. What happens meanwhile goes with the next one. A server that knows
less than this process (it has lost its data, or its last moments) is offered the copy: every process may do
so, since of two values the later or the larger one counts.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, TypeAlias

import trio

from qproxy.accounts.condition import MAX_RESULTS
from qproxy.accounts.shared_state import AccountState, AccountStateDelta, latest, latest_circuit, merge
from qproxy.backends.redis.account_fields import offers_of, operations_of, parse_state
from qproxy.backends.redis.client import RedisClient
from qproxy.backends.redis.connection import Argument
from qproxy.backends.redis.errors import RedisError
from qproxy.backends.redis.script import Script
from qproxy.backends.redis.server_clock import ServerClock
from qproxy.backends.redis.subscriber import READ_BACK_SECONDS

log = logging.getLogger("qproxy.backends")
COUNT_SECONDS = 10.0
"""After which counts are published that no process waits for; events are published at once."""


Kind: TypeAlias = Literal["offer", "event", "counts"]


@dataclass(frozen=True, slots=True)
class Write:
    """A numbered write, with what it publishes."""

    arguments: tuple[Argument, ...]
    delta: AccountStateDelta
    is_offer: bool


class AccountCopy:
    """One account."""

    def __init__(
        self,
        client: RedisClient,
        script: Script,
        key: str,
        name: str,
        *,
        channel: str,
        numbers: Iterator[int],
        server_clock: ServerClock,
        wall_clock: Callable[[], float],
        clock: Callable[[], float],
    ) -> None:
        """`numbers` are never used twice for one key by this process."""
        self.name = name
        self.key = key
        self._client = client
        self._script = script
        self._channel = channel
        self._numbers = numbers
        self._server_clock = server_clock
        self._wall_clock = wall_clock
        self._clock = clock
        self._state = AccountState()
        self._made_at = self._version = ""
        self._is_lost = False
        """Whether the server knows less than this copy."""
        self._pending: AccountStateDelta | None = None
        self._pending_since = -math.inf
        self._in_flight = 0
        """Requests, as of the last write."""
        self._counted_at = -math.inf
        self._write: Write | None = None
        self._ended: trio.Event | None = None
        """Of the command that has no reply yet."""

    def __repr__(self) -> str:
        return f"<AccountCopy {self.name} {'unsettled' if self._unconfirmed() else self._version}>"

    @property
    def exists(self) -> bool:
        """Return whether the server knows the account."""
        return bool(self._version)

    @property
    def is_settled(self) -> bool:
        """Return whether the server knows all that happened here."""
        return not self._unconfirmed() and not self._is_lost

    def state(self) -> AccountState:
        """Return the state of all processes, with what the server does not know yet."""
        state, wall_clock = self._state, self._wall_clock()
        for delta in self._unconfirmed():
            state = merge(state, delta, self._client.process, wall_clock)
        return state

    def add(self, delta: AccountStateDelta) -> None:
        """Add what happened here."""
        if not delta.is_empty or delta.in_flight != self._in_flight:
            self._pending_since = self._clock() if self._pending is None else self._pending_since
            self._pending = delta if self._pending is None else combine_deltas(self._pending, delta)

    def send(self, *, must_write: bool = False) -> trio.Event | None:
        """Publish or read, and return the event of the reply; None if nothing was sent."""
        if self._ended is None:
            if self._write is None and (must_write or self.is_due) and self._server_clock.is_known:
                self._write = self._make_write()
            self._send()
        return self._ended

    def resend(self) -> None:
        """Send the write in flight over a new connection."""
        if self._write is not None and self._ended is None:
            self._send()

    def _unconfirmed(self) -> list[AccountStateDelta]:
        written = None if self._write is None else self._write.delta
        return [delta for delta in (written, self._pending) if delta is not None]

    @property
    def is_due(self) -> bool:
        """Return whether something is to be published now."""
        if self._is_lost:
            return True
        if self._pending is None:
            return False
        return self._is_event(self._pending) or self._clock() - self._counted_at >= COUNT_SECONDS

    def _is_event(self, delta: AccountStateDelta) -> bool:
        changed = merge(self._state, delta, self._client.process, self._wall_clock())
        return delta.is_event or changed.history.is_failing != self._state.history.is_failing

    def _make_write(self) -> Write:
        delta = self._pending or AccountStateDelta(self._state.name, in_flight=self._in_flight)
        offset = self._server_clock.offset
        kind: Kind = "event" if self._is_event(delta) else "counts"
        operations = operations_of(delta, offset)
        if self._is_lost:
            kind, operations = "offer", [*offers_of(self._state, offset), *operations]
        arguments = self.arguments(next(self._numbers), kind, *operations)
        self._pending, self._in_flight, self._counted_at = None, delta.in_flight, self._clock()
        return Write(arguments, delta, self._is_lost)

    def arguments(self, number: int, kind: Kind, *operations: Argument) -> tuple[Argument, ...]:
        """Return the arguments of the script."""
        head = (self._client.process, number, self._channel, self.name, self._version, kind)
        return (*head, *operations)

    def _send(self) -> None:
        write, self._ended = self._write, trio.Event()
        arguments = self.arguments(0, "counts") if write is None else write.arguments
        command = self._client.script_command(self._script, self.key, *arguments)
        try:
            self._client.send(command, partial(self._end, write, self._wall_clock()))
        except RedisError:  # sent again by `send`
            self._ended = None

    def _end(self, write: Write | None, sent_at: float, reply: Any) -> None:
        """Apply a reply; without one a write stays in flight until there is a connection."""
        ended, self._ended = self._ended, None
        if isinstance(reply, list):
            if write is not None:
                self._write = None
            self.apply(reply, sent_at, write)
        if ended is not None:
            ended.set()

    def apply(self, reply: list[bytes], sent_at: float, write: Write | None = None) -> None:
        """Apply the reply to a command that was sent at a time of the wall clock."""
        now, made_at, version = (item.decode(errors="replace") for item in reply[1:4])
        wall_clock = self._wall_clock()
        self._server_clock.observe(sent_at, float(now), wall_clock)
        is_offer = write is not None and write.is_offer
        if not is_offer and self._knows_more_than(made_at, version):
            self._keep(write, was_executed=_number(version) >= _number(self._version))
            return
        self._is_lost = False
        if len(reply) > 4:
            try:
                self._state = parse_state(reply[4:], self._server_clock.offset, wall_clock)
            except (ValueError, TypeError) as error:
                log.warning(
                    "shared state: a damaged state of account %s is ignored: %s", self._state.name, error
                )
        self._made_at, self._version = made_at, version
        self._drop_older_results()

    def _drop_older_results(self) -> None:
        """Drop results that have waited and are older than a failure elsewhere, which they would hide."""
        pending, failed_at = self._pending, self._state.last_fault_at
        if pending is None or failed_at is None or pending.last_fault_at is not None:
            return
        if self._clock() - self._pending_since < READ_BACK_SECONDS:
            return
        if pending.last_success_at is not None and pending.last_success_at < failed_at:
            self._pending = replace(pending, results="")

    def _knows_more_than(self, made_at: str, version: str) -> bool:
        if not self._version:
            return False
        return made_at != self._made_at or _number(version) < _number(self._version)

    def _keep(self, write: Write | None, *, was_executed: bool) -> None:
        """Keep this copy, with what was written, until it has been offered."""
        self._is_lost = True
        if write is None:
            return
        if was_executed:
            self._state = merge(self._state, write.delta, self._client.process, self._wall_clock())
        else:
            self._pending = combine_deltas(write.delta, self._pending or AccountStateDelta(write.delta.name))


def _number(version: str) -> int:
    return int(version) if version.isascii() and version.isdigit() else 0


def combine_deltas(first: AccountStateDelta, second: AccountStateDelta) -> AccountStateDelta:
    """Return two changes of one account as one."""
    fresh_error = second.last_error_at is not None
    fresh_fault = second.last_fault_at is not None
    released = {
        unit: first.released.get(unit, 0.0) + second.released.get(unit, 0.0)
        for unit in {*first.released, *second.released}
    }
    return replace(
        second,
        cooldowns={**first.cooldowns, **second.cooldowns},
        requests=first.requests + second.requests,
        failures=first.failures + second.failures,
        last_error=second.last_error if fresh_error else first.last_error,
        last_error_at=second.last_error_at if fresh_error else first.last_error_at,
        last_message=second.last_message if fresh_error else first.last_message,
        last_success_at=latest(first.last_success_at, second.last_success_at),
        last_fault_at=latest(first.last_fault_at, second.last_fault_at),
        failed_model=second.failed_model if fresh_fault else first.failed_model,
        results=(first.results + second.results)[-MAX_RESULTS:],
        successes={**first.successes, **second.successes},
        woken_at=latest(first.woken_at, second.woken_at),
        quota=second.quota if second.quota is not None else first.quota,
        login=second.login or first.login,
        released=released,
        learned_rules={**first.learned_rules, **second.learned_rules},
        circuit=latest_circuit(first.circuit, second.circuit),
    )
