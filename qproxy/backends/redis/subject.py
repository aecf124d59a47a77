"""The limits of one subject, as this process knows them.

A request takes from the `credit` that the server has granted this process in advance, or waits for one
exchange with the server, which grants what it needs and, while much is left, a quarter of a second's worth of
this process's requests. A rejection holds here until its wait has passed, for a second at most: a subject at
its limit costs no commands. So no process can use what the server has not granted.

At most one exchange is in flight. It has a number; if it gets no reply it is sent again, unchanged, before
any other one, and the server counts it once. Amounts that were settled meanwhile go with the next one. A
grant that arrives after its request has gone is credit, and credit that is not used is returned.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import trio

from qproxy.backends.redis.client import RedisClient
from qproxy.backends.redis.errors import RedisError
from qproxy.backends.redis.exchange import IN_FLIGHT, BudgetLimit, Exchange, Exhausted, parse_outcome
from qproxy.backends.redis.script import Script
from qproxy.backends.redis.share import Share
from qproxy.limits.token_bucket import REQUESTS, Amounts, TokenBucket

SLICE_SECONDS = 0.25
MAX_SLICE = 0.025
"""Part of a limit per minute that is taken in advance."""
CREDIT_SECONDS = 0.5
"""Age at which unused credit is returned."""
MAX_DENIAL = 1.0
"""Seconds that a rejection holds without a question to the server, which may have got something back."""
SETTLE_SECONDS = 0.25
"""Within which amounts that are settled are summed; the first one is sent at once."""


class Subject:
    """The state of the limits of one subject."""

    def __init__(
        self,
        client: RedisClient,
        script: Script,
        key: str,
        limits: Amounts,
        budgets: Sequence[BudgetLimit],
        *,
        numbers: Iterator[int],
        clock: Callable[[], float],
    ) -> None:
        """`numbers` are never used twice for one key by this process."""
        self.held: dict[str, float] = {}
        """By requests in flight, for the budgets."""
        self.seeds: Mapping[tuple[str, str], float] = {}
        self.usage: Mapping[tuple[str, str], float] | None = None
        """Of all processes, by window and unit, as of the last reply; None before the first one."""
        self.found_at = clock()
        """When a request last looked it up; it is not dropped soon after."""
        self.share: Share | None = None
        """What this process decides by while the server cannot be used."""
        self.levels: dict[str, TokenBucket] = {}
        """On the server, as of the last reply."""
        self._client = client
        self._script = script
        self.key = key
        """Its name on the server."""
        self._clock = clock
        self._numbers = numbers
        self._in_flight: Exchange | None = None
        self._sent = False
        """Whether the exchange in flight was sent over the present connection."""
        self._exchanged_at = -math.inf
        self._credit: dict[str, float] = {}
        self._credited_at = -math.inf
        self._taken: dict[str, float] = {}
        self._used: dict[str, float] = {}
        self._changed = False
        """Whether the server does not know all of `_taken`, `_used`, `held` and `_credit`."""
        self._waiting: dict[str, float] = {}
        self._denied: Amounts | None = None
        self._denied_until = -math.inf
        self._exhausted: Exhausted | None = None
        self._rate = 0.0
        self._reserved_at = -math.inf
        self.set_limits(limits, budgets)

    def __repr__(self) -> str:
        return f"<Subject {self.key}>"

    def set_limits(self, limits: Amounts, budgets: Sequence[BudgetLimit]) -> None:
        """Apply other limits from the next exchange on."""
        now = self._clock()
        self.limits = limits
        self.budgets = budgets
        self.units = tuple(dict.fromkeys((*limits, *(row.unit for row in budgets))))
        self.levels = {unit: TokenBucket(limit, now) for unit, limit in limits.items()}
        self.usage = self.share = self._denied = None

    @property
    def is_settled(self) -> bool:
        """Return whether the server knows all that happened here."""
        return not (self._in_flight or self._changed or self._credit or self.held)

    @property
    def exchanged_at(self) -> float:
        """Return when the last exchange began."""
        return self._exchanged_at

    @property
    def exhausted(self) -> Exhausted | None:
        """Return the budget for which a request was rejected."""
        return self._exhausted

    def available(self) -> Amounts:
        """Return what is left of each limit, with what this process has in advance."""
        now = self._clock()
        return {unit: level.available(now) + self._credit.get(unit, 0) for unit, level in self.levels.items()}

    async def reserve(self, amounts: Amounts, *, unchecked: str | None = None) -> bool | None:
        """Take the amounts, hold those of budgets, and return True, or False if a limit does not allow it;
        None if the server is not there.

        `unchecked` names a unit that no budget is checked for. The caller limits the time.
        """
        self._observe_rate()
        amounts = self._bounded(amounts)
        with self._as_waiting(amounts):
            while True:
                if self._is_denied(amounts):
                    return False
                if any(amounts.values()) and self._spend(amounts):
                    return True
                if not self._client.is_connected:
                    return None
                exchange = self._in_flight
                if exchange is not None:
                    if not self._sent or self._clock() - self._exchanged_at >= self._client.timeout:
                        return None  # another request has waited long enough
                    await exchange.ended.wait()
                    continue
                exchange = self._begin(amounts, unchecked)
                if not self._sent:
                    exchange.owned = False
                    return None
                try:
                    await exchange.ended.wait()
                except trio.Cancelled:
                    self._abandon(exchange, amounts)
                    raise
                if exchange.granted is not None:
                    return exchange.granted
                exchange.owned = False

    def reject(self, exhausted: Exhausted | None) -> None:
        """Record for which budget a request is rejected; None for a level."""
        self._exhausted = exhausted

    def take(self, amounts: Amounts) -> None:
        """Take amounts from the levels in any case, or return negative ones."""
        _add(self._taken, {unit: amounts.get(unit, 0) for unit in self.limits})
        self._changed = self._changed or bool(self._taken)
        if any(amount < 0 for amount in amounts.values()):
            self._denied = None

    def use(self, amounts: Amounts) -> None:
        """Count amounts in the budgets."""
        _add(self._used, {row.unit: amounts.get(row.unit, 0) for row in self.budgets})
        self._changed = self._changed or bool(self._used)

    def hold(self, amounts: Amounts, sign: int = 1) -> None:
        """Reserve amounts of the budgets, or release them."""
        _add(self.held, {row.unit: sign * amounts.get(row.unit, 0) for row in self.budgets})
        self._changed = self._changed or sign < 0  # what is held was granted
        if sign < 0:
            self._denied = None

    def settle(self) -> None:
        """Send what was taken and used, unless the last exchange was a moment ago."""
        if self._clock() - self._exchanged_at >= SETTLE_SECONDS:
            self.flush()

    def flush(self, *, renew: bool = False) -> None:
        """Send what the server does not know yet, or renew the lease; return credit that is not used."""
        now = self._clock()
        if self._credit and now - self._credited_at >= CREDIT_SECONDS:
            self.take({unit: -amount for unit, amount in self._credit.items()})
            self._credit, self._changed = {}, True  # it was held, too
        if self._client.is_connected:
            if self._in_flight is None and (renew or self._changed):
                self._begin(None, None)
            else:
                self.resend()

    def resend(self) -> None:
        """Send the exchange in flight over a new connection, if there is one."""
        if self._in_flight is not None and not self._sent:
            self._send(self._in_flight)

    def unsettled(self) -> Iterator[Exchange]:
        """Yield the exchanges that the server lacks, for a later process: no request waits for them."""
        if self._in_flight is not None:
            yield replace(self._in_flight, need=None, want={})
        self.take({unit: -amount for unit, amount in self._credit.items()})
        self._credit = {}
        if self._taken or self._used:
            number, taken, used = next(self._numbers), self._taken, self._used
            yield Exchange(number, self.limits, self.units, taken, used, None, {}, self.budgets, {})

    def _observe_rate(self) -> None:
        now = self._clock()
        self._rate = 0.9 * self._rate + 0.1 / max(1e-3, now - self._reserved_at)
        self._reserved_at = now

    def _bounded(self, amounts: Amounts) -> Amounts:
        """Return the amounts of the limited units, up to a minute's worth."""
        return {unit: min(amounts.get(unit, 0), self.limits.get(unit, math.inf)) for unit in self.units}

    @contextmanager
    def _as_waiting(self, amounts: Amounts) -> Iterator[None]:
        _add(self._waiting, amounts)
        try:
            yield
        finally:
            _add(self._waiting, amounts, -1)

    def _is_denied(self, amounts: Amounts) -> bool:
        if self._denied is None or self._clock() >= self._denied_until:
            return False
        return all(amounts.get(unit, 0) >= amount for unit, amount in self._denied.items())

    def _spend(self, amounts: Amounts) -> bool:
        if any(self._credit.get(unit, 0) < amount for unit, amount in amounts.items()):
            return False
        _add(self._credit, amounts, -1)
        self.hold(amounts)  # at once: an exchange that begins now must include it
        return True

    def _begin(self, need: Amounts | None, unchecked: str | None) -> Exchange:
        number, limits, units = next(self._numbers), self.limits, self.units
        budgets = self.budgets
        if unchecked is not None:
            budgets = [replace(row, limit=0) if row.unit == unchecked else row for row in budgets]
        want = {} if need is None or unchecked is not None else self._slice(need)
        exchange = Exchange(number, limits, units, self._taken, self._used, need, want, budgets, self.seeds)
        self._in_flight, self._taken, self._used, self.seeds = exchange, {}, {}, {}
        self._changed, self._exchanged_at = False, self._clock()
        self._send(exchange)
        return exchange

    def _slice(self, need: Amounts) -> Amounts:
        """Return what is taken if much is left: for all that wait, and for the next moment."""
        count = max(1, int(self._rate * SLICE_SECONDS)) if need.get(REQUESTS) else 1
        want = {}
        for unit, amount in need.items():
            ahead = min(amount * count, self.limits.get(unit, math.inf) * MAX_SLICE)
            want[unit] = max(amount, ahead, self._waiting.get(unit, 0))
        return want

    def _send(self, exchange: Exchange) -> None:
        held = dict(self.held)
        _add(held, self._credit)
        client = self._client
        arguments = exchange.arguments(
            held,
            process=client.process,
            forgot_at=client.forgot_at,
            processes=client.processes,
        )
        command = client.script_command(self._script, self.key, *arguments)
        try:
            client.send(command, partial(self._end, exchange))
            self._sent = True
        except RedisError:  # sent again by `flush`
            self._end(exchange, None)

    def _end(self, exchange: Exchange, reply: Any) -> None:
        """Apply a reply; without one the exchange stays in flight until there is a connection."""
        ended, exchange.ended = exchange.ended, trio.Event()
        self._sent = False
        if isinstance(reply, list):
            self._in_flight = self.share = None
            self._apply(exchange, reply)
        ended.set()

    def _apply(self, exchange: Exchange, reply: Any) -> None:
        now, outcome = self._clock(), parse_outcome(reply, exchange.units, exchange.budgets)
        for unit, bucket in self.levels.items():
            bucket.set_level(outcome.levels.get(unit, bucket.capacity), now)
        self.usage = outcome.usage
        _add(self._credit, outcome.amounts)
        self._credited_at = now
        if exchange.need is None:
            return
        exchange.granted = outcome.granted
        if outcome.granted and exchange.owned:
            _add(self._credit, exchange.need, -1)
            self.hold(exchange.need)
        if not outcome.granted:
            self._exhausted = outcome.exhausted
            self._denied, self._denied_until = exchange.need, now + self._denial(exchange, now)

    def _denial(self, exchange: Exchange, now: float) -> float:
        """Return the seconds until a level allows what was rejected; a budget may at any time, and a slot is
        soon free."""
        if self._exhausted is not None and self._exhausted.budget.window == IN_FLIGHT:
            return SETTLE_SECONDS
        need = exchange.need or {}
        waits = [bucket.wait(need.get(unit, 0), now) for unit, bucket in self.levels.items()]
        return min(MAX_DENIAL, max(waits, default=0.0) or MAX_DENIAL)

    def _abandon(self, exchange: Exchange, amounts: Amounts) -> None:
        """Keep as credit what a request that has gone was or will be granted."""
        exchange.owned = False
        if exchange.granted:
            _add(self._credit, amounts)
            self.hold(amounts, -1)


def _add(total: dict[str, float], amounts: Amounts, sign: int = 1) -> None:
    """Add amounts to a total, without units of which nothing is left."""
    for unit, amount in amounts.items():
        value = total.get(unit, 0) + sign * amount
        if abs(value) > 1e-9:
            total[unit] = value
        else:
            total.pop(unit, None)
