"""One exchange with the limits of a subject: the arguments of `limits.lua`, and its reply.

`limits.lua` explains both; amounts are numbers by unit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import trio

from qproxy.backends.redis.connection import Argument
from qproxy.limits.token_bucket import Amounts

IN_FLIGHT = "in_flight"
"""Window and unit of what is held for as long as a request runs, and never used."""


@dataclass(frozen=True, slots=True)
class BudgetLimit:
    """The limit of one unit within one window; 0 is counted and not checked."""

    window: str
    unit: str
    limit: float


@dataclass(eq=False, slots=True)
class Exchange:
    """The content of one numbered exchange carries; sent again with the same number, it counts once."""

    number: int
    limits: Amounts
    """Per minute; a unit without one has none."""
    units: Sequence[str]
    taken: Amounts
    """Of the levels per minute; negative amounts are returned."""
    used: Amounts
    """Of the budgets."""
    need: Amounts | None
    """What a request waits for; None if none does."""
    want: Amounts
    budgets: Sequence[BudgetLimit]
    """Those that the request is checked against."""
    seeds: Mapping[tuple[str, str], float]
    """What the ledger knows of each window and unit: at least so much was used."""
    owned: bool = True
    """Whether the request still waits for it."""
    granted: bool | None = None
    exhausted: Exhausted | None = None
    ended: trio.Event = field(default_factory=trio.Event)

    def arguments(self, held: Amounts, *, process: str, forgot_at: float, processes: int) -> list[Argument]:
        """Return the arguments of the script."""
        asks, need = int(self.need is not None), self.need or {}
        found: list[Argument] = [process, self.number, asks, _text(forgot_at), processes, len(self.units)]
        for unit in self.units:
            amounts = (need, self.want, self.taken, self.used, held)
            found += [unit, self.limits.get(unit, 0), *(_text(each.get(unit, 0)) for each in amounts)]
        found.append(len(self.budgets))
        for row in self.budgets:
            found += [row.window, row.unit, row.limit, _text(self.seeds.get((row.window, row.unit), 0))]
        return found


@dataclass(frozen=True, slots=True)
class Exhausted:
    """A budget that is exhausted."""

    budget: BudgetLimit
    resets_at: float
    """0 unless the window is rolling."""
    now: float
    """By the server's clock."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The reply to an exchange."""

    granted: bool
    now: float
    amounts: Amounts
    levels: Amounts
    usage: Mapping[tuple[str, str], float]
    """Used and held, by window and unit."""
    exhausted: Exhausted | None


def parse_outcome(reply: Sequence[bytes], units: Sequence[str], budgets: Sequence[BudgetLimit]) -> Outcome:
    """Return the content of a reply."""
    granted, now = bool(int(reply[0])), float(reply[1])
    numbers = [float(item) for item in reply[2:]]
    count = len(units)
    amounts = dict(zip(units, numbers[0 : 2 * count : 2], strict=True))
    levels = dict(zip(units, numbers[1 : 2 * count : 2], strict=True))
    rows = numbers[2 * count :]
    usage, exhausted = {}, None
    for index, budget in enumerate(budgets):
        used, held, resets = rows[3 * index : 3 * index + 3]
        usage[budget.window, budget.unit] = used + held
        if not granted and exhausted is None and budget.limit and used + held >= budget.limit:
            exhausted = Exhausted(budget, resets, now)
    return Outcome(granted, now, amounts, levels, usage, exhausted)


def _text(amount: float) -> str:
    return f"{amount:.15g}"
