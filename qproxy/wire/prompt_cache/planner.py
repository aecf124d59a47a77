"""The planner of breakpoints: the choice that is expected to cost least, over this request and later ones.

`choose` is pure; `CachePlanner` gives it what is measured of earlier requests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qproxy.wire.events import JSON, Usage
from qproxy.wire.prompt_cache.prefixes import Prefix, Prefixes, read_prefixes
from qproxy.wire.prompt_cache.reuse import FIVE_MINUTES, HOUR, ReuseTable, Sighting

MINIMUM_TOKENS = 1024
"""The least tokens of a prefix that an explicit cache keeps."""
MAX_BREAKPOINTS = 4
MARGIN, IMPLICIT_MARGIN = 0.02, 0.3
"""Shares of the prompt's price that an explicit cache must be expected to save, as all of it is estimated:
always, and besides for an implicit cache, by the share that it reads without any risk."""


@dataclass(frozen=True, slots=True)
class CachePrices:
    """Prices of prompt tokens, as shares of the price of an uncached one."""

    implicit: float
    """Read from the implicit cache."""
    read: float
    """Read from an explicit cache."""
    write: float
    """Written to it for five minutes."""
    write_1h: float

    @classmethod
    def of(cls, tier: Mapping[str, Any] | None, terms: Mapping[str, Any]) -> CachePrices:
        """Return the shares of a tier of prices; a kind without a price has the terms' share."""
        tier = tier or {}
        unit = tier.get("input") or 1.0

        def share(kind: str, term: str, default: float) -> float:
            return float(tier[kind] / unit) if kind in tier else float(terms.get(term, default))

        implicit = share("cached", "cached_share", 0.2)
        read = float(tier["explicit_cached"] / unit) if "explicit_cached" in tier else implicit
        return cls(
            implicit,
            read,
            share("cache_write", "cache_write_share", 1.25),
            share("cache_write_1h", "cache_write_1h_share", 2.0),
        )


@dataclass(frozen=True, slots=True)
class Prospect:
    """The facts about one request, in tokens and probabilities."""

    total: int
    root: int
    """Tools and system messages; 0 where none can be marked."""
    known: int
    """Sent within five minutes."""
    explicit: int
    """In the explicit cache."""
    continued: float
    """The probability that another request begins with the whole of this one within five minutes."""
    continued_later: float
    """The same within an hour."""
    again: float
    """The probability that another one has the same root within five minutes."""
    again_later: float
    implicit_share: float | None
    """Share of repeated tokens that the implicit cache reads; None if it is not measured."""


@dataclass(frozen=True, slots=True)
class Choice:
    """An end of the explicitly cached part of a prompt, in tokens (0 for nothing), and its time to live."""

    end: int = 0
    long: bool = False


IMPLICIT = Choice()


def choose(prospect: Prospect, prices: CachePrices, *, allow_1h: bool) -> Choice:
    """Return what is expected to cost least."""
    if prospect.implicit_share is None or prospect.total < MINIMUM_TOKENS:
        return IMPLICIT  # costs nothing, and is measured by the first request that repeats another
    repeated = 1 - prospect.implicit_share * (1 - prices.implicit)
    implicit = prospect.known * repeated + prospect.total - prospect.known
    least = implicit - (MARGIN + IMPLICIT_MARGIN * prospect.implicit_share) * prospect.total
    ends = {end for end in (prospect.root, prospect.explicit, prospect.total) if end >= MINIMUM_TOKENS}
    worthwhile = []
    for long in (False, True) if allow_1h else (False,):
        rewrite = prices.write_1h if long else prices.write
        costs = {
            end: _explicit_cost(prospect, prices, Choice(end, long), repeated, rewrite)
            for end in sorted(ends)
        }
        end = min(costs, key=costs.__getitem__)
        if costs[end] < least:
            worthwhile.append(Choice(end, long))

    def cost(choice: Choice) -> float:
        return _explicit_cost(prospect, prices, choice, repeated, prices.write)

    return min(worthwhile, key=cost, default=IMPLICIT)


def _explicit_cost(
    prospect: Prospect, prices: CachePrices, choice: Choice, repeated: float, rewrite: float
) -> float:
    """Return the cost of this request, less what later ones are expected to save by it.

    A token that is not cached costs `repeated` in each later request, or the next one writes it for
    `rewrite`.
    """

    def saved(probability: float) -> float:
        forever = (repeated - prices.read) / max(1 - probability, 1e-6)
        return probability * min(forever, rewrite - prices.read)

    end, write = choice.end, prices.write_1h if choice.long else prices.write
    read = prospect.explicit if prospect.explicit <= end else 0
    now = read * prices.read + (end - read) * write + prospect.total - end
    continued = prospect.continued_later if choice.long else prospect.continued
    again = max(continued, prospect.again_later if choice.long else prospect.again)
    if end <= prospect.root:
        kept = saved(again) * end
    else:
        kept = saved(continued) * end
        if read <= prospect.root:  # a longer hit does not renew the life of the root
            kept += (saved(again) - saved(continued)) * prospect.root
    return now - kept


@dataclass(frozen=True, slots=True)
class CachePlan:
    """The breakpoints of one request, and what its usage will tell about the caches."""

    scope: str
    places: tuple[int, ...] = ()
    """The messages at whose ends there are breakpoints."""
    long: bool = False
    """Whether for an hour."""
    repeated: int = 0
    """Tokens that an implicit cache could have read, of `total`; both are estimates."""
    total: int = 1


class CachePlanner:
    """Plans the breakpoints of requests by what is measured of earlier ones."""

    def __init__(self) -> None:
        self._reuse = ReuseTable()
        self._has_1h: set[str] = set()

    def __repr__(self) -> str:
        return f"<CachePlanner with {self._reuse!r}>"

    def plan(
        self,
        scope: str,
        messages: Sequence[JSON],
        tools: Sequence[JSON],
        *,
        ratio: float,
        prices: CachePrices,
        allow_1h: bool,
        now: float,
    ) -> CachePlan:
        """Return the plan for a request to what `scope` names: an account and a model.

        `ratio` is tokens per byte, `now` seconds of any clock; `allow_1h` permits the life of an hour before
        the server's usage has shown it.
        """
        prefixes = read_prefixes(scope, messages, tools, ratio)
        if not prefixes.steps:
            return CachePlan(scope)
        seen = self._reuse.observe(prefixes, now)
        share = self._reuse.implicit_share(scope, now)
        choice = choose(_prospect(prefixes, seen, share), prices, allow_1h=allow_1h or scope in self._has_1h)
        if choice.end == 0:
            known = seen.known.tokens if seen.known else 0
            return CachePlan(scope, repeated=known, total=prefixes.steps[-1].tokens)
        marked = _breakpoints(prefixes, seen.explicit, choice.end)
        until = now + (HOUR if choice.long else FIVE_MINUTES)
        hit = seen.explicit.tokens if seen.explicit in marked and seen.explicit else 0
        for prefix in marked:
            if prefix.tokens >= hit:
                self._reuse.mark_written(prefix, until)
        return CachePlan(scope, tuple(prefix.message for prefix in marked), choice.long)

    def learn(self, plan: CachePlan, usage: Usage, now: float) -> None:
        """Learn from the usage of a planned request; one without cached tokens is billed as having none."""
        if usage.cache_writes[1]:
            self._has_1h.add(plan.scope)
        if plan.repeated >= MINIMUM_TOKENS and usage.prompt_tokens:
            repeated = usage.prompt_tokens * plan.repeated / plan.total
            share = min(1.0, usage.cached_tokens / repeated)
            self._reuse.measure_implicit(plan.scope, share, now)


def _prospect(prefixes: Prefixes, seen: Sighting, implicit_share: float | None) -> Prospect:
    counts, root = seen.counts, prefixes.root
    return Prospect(
        total=prefixes.steps[-1].tokens,
        root=root.tokens if root else 0,
        known=seen.known.tokens if seen.known else 0,
        explicit=seen.explicit.tokens if seen.explicit else 0,
        continued=counts.share(counts.continued),
        continued_later=counts.share(max(counts.continued, counts.continued_later - 1)),
        again=counts.share(counts.again),
        again_later=counts.share(max(counts.again, counts.again_later - 1)),
        implicit_share=implicit_share,
    )


def _breakpoints(prefixes: Prefixes, explicit: Prefix | None, end: int) -> list[Prefix]:
    """Return the prefixes to mark: the root, what the cache has, and the end.

    What the cache has is marked again: a server looks back only some blocks from a breakpoint.
    """
    wanted = {prefixes.root, explicit, next(step for step in prefixes.steps if step.tokens >= end)}
    marked = [step for step in prefixes.steps if step in wanted and MINIMUM_TOKENS <= step.tokens <= end]
    return marked[-MAX_BREAKPOINTS:]
