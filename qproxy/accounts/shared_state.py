"""What the processes that speak as the same accounts tell each other, and what outlives them.

A `Board` is the one interface: `exchange` posts what happened here and reads what happened elsewhere, about once a
second; `claim` asks for a place in an account's pace and is the only thing that a request waits for, and only where
the account is paced.  The embedded member is a file (`board_file`); one for several machines would be another.

Times on a board are those of the wall clock.  `merged` and `claimed` are pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

from qproxy.accounts.cooldowns import Rest
from qproxy.limits.token_bucket import MINUTE, Bucket

SLOT = 10.0
"""Seconds that are counted together for "the last minute"."""
HEARTBEAT = 15.0
"""A process that has said nothing for so long has no requests under way: it has ended."""


class BoardError(Exception):
    """The board cannot be read or written; the message says why."""


@dataclass(frozen=True, slots=True)
class Login:
    """How the tokens of an account that is signed in are; `auth.status` has the states and the words."""

    state: str
    words: str
    usable: bool
    expires_at: float | None = None


@dataclass(frozen=True, slots=True)
class Standing:
    """What everybody should know of one account."""

    name: str = ""
    rests: Mapping[str, Rest] = field(default_factory=dict)
    requests: int = 0
    failures: int = 0
    last_error: str | None = None
    last_error_at: float | None = None
    quota: str | None = None
    login: Login | None = None
    pace: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """What is left of requests and of tokens, and when that was."""
    slots: Mapping[str, int] = field(default_factory=dict)
    """Requests by slot of time."""
    in_flight: Mapping[str, tuple[int, float]] = field(default_factory=dict)
    """By process, and when it said so."""

    def last_minute(self, wall: float) -> int:
        first = int((wall - MINUTE) // SLOT) + 1
        return sum(count for slot, count in self.slots.items() if int(slot) >= first)

    def under_way(self, wall: float) -> int:
        return sum(count for count, at in self.in_flight.values() if wall - at <= HEARTBEAT)


@dataclass(frozen=True, slots=True)
class News:
    """What happened to one account in one process since it last said so."""

    name: str
    rests: Mapping[str, Rest | None] = field(default_factory=dict)
    """Those that began, and (None) those that ended."""
    requests: int = 0
    failures: int = 0
    in_flight: int = 0
    last_error: str | None = None
    last_error_at: float | None = None
    quota: tuple[str | None] | None = None
    """In a tuple where it has changed."""
    login: Login | None = None
    """Where it has changed."""
    returned: float = 0.0
    """Tokens that were taken and not used."""
    limits: Limits | None = None

    @property
    def empty(self) -> bool:
        """Whether nobody would miss it."""
        counts = self.requests or self.failures or self.in_flight or self.returned
        return not (counts or self.rests or self.quota or self.login)


@dataclass(frozen=True, slots=True)
class Limits:
    """An account's requests and tokens a minute."""

    rpm: int | None = None
    tpm: int | None = None

    def pairs(self) -> list[tuple[str, int]]:
        limits = (("requests", self.rpm), ("tokens", self.tpm))
        return [(what, limit) for what, limit in limits if limit is not None]


@dataclass(frozen=True, slots=True)
class Claim:
    """How a claim ended, and what is left after it."""

    granted: bool
    requests: float | None
    tokens: float | None


class Board(Protocol):
    """Where the processes meet.  Everything raises BoardError."""

    async def claim(self, identity: str, limits: Limits, tokens: int) -> Claim:
        """One request and so many tokens of an account's pace, for all processes together."""
        ...

    async def exchange(self, news: Mapping[str, News]) -> Mapping[str, Standing]:
        """Post the news, by identity; returns what is known of the same accounts then."""
        ...

    async def aclose(self) -> None: ...


def left(standing: Standing, what: str, capacity: int, wall: float) -> Bucket:
    """One of an account's buckets as it stands."""
    bucket = Bucket(capacity, wall)
    if what in standing.pace:
        amount, at = standing.pace[what]
        bucket.put(amount, min(at, wall))  # a clock that was set back makes nobody wait for it
    return bucket


def claimed(standing: Standing, limits: Limits, tokens: int, wall: float) -> tuple[Standing, Claim]:
    """The standing after a claim, and how it ended."""
    counts = {"requests": 1, "tokens": tokens}
    buckets = {what: left(standing, what, capacity, wall) for what, capacity in limits.pairs()}
    granted = not any(bucket.wait(counts[what], wall) for what, bucket in buckets.items())
    for what, bucket in buckets.items() if granted else ():
        bucket.take(min(counts[what], bucket.capacity), wall)
    pace = {what: (bucket.left(wall), wall) for what, bucket in buckets.items()}
    amounts = {what: amount for what, (amount, _) in pace.items()}
    claim = Claim(granted, amounts.get("requests"), amounts.get("tokens"))
    return replace(standing, pace={**standing.pace, **pace}), claim


def merged(standing: Standing, news: News, process: str, wall: float) -> Standing:
    """The standing after one process's news."""
    rests = {**standing.rests, **{key: rest for key, rest in news.rests.items() if rest is not None}}
    ended = [key for key, rest in news.rests.items() if rest is None]
    slot = str(int(wall // SLOT))
    slots = {**standing.slots, slot: standing.slots.get(slot, 0) + news.requests}
    in_flight = {**standing.in_flight, process: (news.in_flight, wall)}
    pace = dict(standing.pace)
    if news.returned and news.limits is not None and news.limits.tpm is not None:
        bucket = left(standing, "tokens", news.limits.tpm, wall)
        bucket.take(-news.returned, wall)
        pace["tokens"] = bucket.left(wall), wall
    return Standing(
        name=news.name,
        rests={key: rest for key, rest in rests.items() if key not in ended},
        requests=standing.requests + news.requests,
        failures=standing.failures + news.failures,
        last_error=news.last_error or standing.last_error,
        last_error_at=news.last_error_at or standing.last_error_at,
        quota=standing.quota if news.quota is None else news.quota[0],
        login=news.login or standing.login,
        pace=pace,
        slots={key: count for key, count in slots.items() if count and int(key) > wall // SLOT - 7},
        in_flight={
            key: (count, at) for key, (count, at) in in_flight.items() if count and wall - at <= HEARTBEAT
        },
    )


def to_json(standing: Standing) -> dict[str, Any]:
    return asdict(standing)


def from_json(data: Mapping[str, Any]) -> Standing:
    """A standing that was written before, by this or another version; ValueError when it is none."""
    try:
        known = {key: value for key, value in data.items() if key in Standing.__dataclass_fields__}
        rests = {key: Rest(**rest) for key, rest in known.pop("rests", {}).items()}
        for name in ("pace", "in_flight"):
            pairs: Sequence[tuple[str, Any]] = list(known.get(name, {}).items())
            known[name] = {key: (first, second) for key, (first, second) in pairs}
        login = known.pop("login", None)
        return Standing(rests=rests, login=None if login is None else Login(**login), **known)
    except (TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"not a standing: {error}") from None
