"""The operator's choice of the placement of breakpoints, and its effect on a request.

With "markers" clients place them, with "auto" the planner does for the others, with "off" there are none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import trio

from qproxy.accounts import Account
from qproxy.wire.dialects import UpstreamTarget
from qproxy.wire.events import Turn
from qproxy.wire.models.name_pattern import NamePattern
from qproxy.wire.prompt_cache import CachePlan, CachePlanner, CachePrices, markers
from qproxy.wire.token_ratios import TokenRatios

EXPLICIT = ("explicit", "options")
"""Kinds of caches that take breakpoints (`ModelSpec.cache`)."""


@dataclass(frozen=True, slots=True)
class PromptCachePolicy:
    """The settings of prompt caches."""

    mode: str
    """"auto", "markers" or "off"."""
    models: Sequence[tuple[NamePattern, str]]
    """Modes of models by pattern; the first that matches counts."""
    allow_1h: bool
    price_terms: Mapping[str, Any]
    """Shares of the price of input, where a model has no prices for its cache."""

    def mode_of(self, model: str) -> str:
        """Return the mode of a model."""
        return next(
            (mode for pattern, mode in self.models if pattern.match(model.lower()) is not None), self.mode
        )


def apply_policy(
    policy: PromptCachePolicy,
    planner: CachePlanner,
    ratios: TokenRatios,
    turn: Turn,
    target: UpstreamTarget,
    account: Account,
) -> tuple[Turn, CachePlan | None]:
    """Return the turn with planned breakpoints and the plan, or without any breakpoints, or as it is."""
    mode = policy.mode_of(target.model)
    if mode == "off":
        return _without_cache(turn), None
    spec = target.spec
    if mode != "auto" or spec.cache not in EXPLICIT or target.family != "dashscope" or target.native:
        return turn, None
    if turn.completion is not None or markers.has_markers(turn.messages, turn.tools, turn.params):
        return turn, None
    plan = planner.plan(
        f"{account.name}/{target.model}",
        turn.messages,
        turn.tools,
        ratio=ratios.ratio(target.model),
        prices=CachePrices.of(spec.prices[0] if spec.prices else None, policy.price_terms),
        allow_1h=policy.allow_1h and spec.cache == "options",
        now=trio.current_time(),
    )
    if not plan.places:
        return turn, plan
    params = turn.params
    if plan.long:
        params = {**params, markers.OPTIONS: {"mode": "explicit", "ttl": "1h"}}
    return replace(turn, messages=markers.place_markers(turn.messages, plan.places), params=params), plan


def _without_cache(turn: Turn) -> Turn:
    """Return a turn without the client's breakpoints and cache options, which are named as ignored."""
    if not markers.has_markers(turn.messages, turn.tools, turn.params):
        return turn
    params = {name: value for name, value in turn.params.items() if name != markers.OPTIONS}
    return replace(
        turn,
        messages=markers.without_markers(turn.messages),
        tools=markers.without_markers(turn.tools),
        params=params,
        ignored=(*turn.ignored, "prompt_cache"),
    )
