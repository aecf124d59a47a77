"""Rules that an upstream's rejections have taught: applied to a model of an account without being configured.

What was learned is kept for a month, since a server may be updated, and for a bounded number of rules, since
models' names come from clients. Times are those of the wall clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

MAX_LEARNED = 200
"""Maximum number of rules that an account keeps."""
LEARNED_SECONDS = 30 * 86400.0
"""Seconds after which a rule has to be learned again."""


class LearnedRule(NamedTuple):
    """A rule that was learned for a model."""

    model: str
    rule: str
    at: float


def newest(learned: Mapping[str, float], wall_clock: float) -> dict[str, float]:
    """Return the entries that are not too old, and not too many."""
    kept = [(key, at) for key, at in learned.items() if wall_clock - at < LEARNED_SECONDS]
    return dict(sorted(kept, key=lambda entry: entry[1])[-MAX_LEARNED:])


def learned_rules(entries: Mapping[str, float]) -> list[LearnedRule]:
    """Return stored entries as rules, by model."""
    parts = ((key.partition(" "), at) for key, at in entries.items())
    return sorted(LearnedRule(model, rule, at) for (rule, _, model), at in parts)


class LearnedRules:
    """The learned rules of one account."""

    def __init__(self) -> None:
        self._by_model: dict[str, dict[str, float]] = {}

    def __repr__(self) -> str:
        return f"<LearnedRules for {len(self._by_model)} models>"

    def __iter__(self) -> Iterator[LearnedRule]:
        return iter(learned_rules(self.entries()))

    def for_model(self, model: str, wall_clock: float) -> dict[str, bool]:
        """Return the switches of the rules that were learned for a model."""
        learned = self._by_model.get(model)
        if learned is None:
            return {}
        return {rule: True for rule, at in learned.items() if wall_clock - at < LEARNED_SECONDS}

    def add(self, model: str, rules: Iterable[str], wall_clock: float) -> None:
        """Remember rules for a model, and forget the oldest of too many."""
        added = {f"{rule} {model}": wall_clock for rule in rules}
        self.replace(newest({**self.entries(), **added}, wall_clock))

    def forget(self) -> None:
        """Forget all rules."""
        self._by_model.clear()

    def entries(self) -> dict[str, float]:
        """Return when each rule was learned, by rule and model in one text, as the shared state has it."""
        return {
            f"{rule} {model}": at for model, rules in self._by_model.items() for rule, at in rules.items()
        }

    def replace(self, entries: Mapping[str, float]) -> None:
        """Keep these entries alone."""
        self._by_model = {}
        for model, rule, at in learned_rules(entries):
            self._by_model.setdefault(model, {})[rule] = at
