"""What tokens cost, as far as that is known: an estimate, not a bill.

`prices.json` holds Model Studio's international list prices with their date and sources.  They are for pay-as-you-go
accounts outside China; plans are paid otherwise, other regions and servers of your own have no price here unless the
setting `prices` gives one.  A model without a known price costs None, which is not 0.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from qproxy.wire.events import Usage

CACHED_SHARE = 0.2
"""Of the input's price, where a model has no price of its own for cached tokens."""


@dataclass(frozen=True, slots=True)
class PriceTier:
    """Prices for prompts of up to `max_prompt_tokens` tokens; US dollars for a million tokens."""

    input: float
    output: float
    cached: float | None = None
    thinking_output: float | None = None
    max_prompt_tokens: float = float("inf")

    def cost(self, usage: Usage) -> float:
        cached = min(usage.cached_tokens, usage.prompt_tokens)
        of_cached = self.input * CACHED_SHARE if self.cached is None else self.cached
        thought = usage.reasoning_tokens and self.thinking_output is not None
        of_output = self.thinking_output if thought and self.thinking_output is not None else self.output
        fresh = usage.prompt_tokens - cached
        return (fresh * self.input + cached * of_cached + usage.completion_tokens * of_output) / 1e6


@dataclass(frozen=True, slots=True)
class ModelPrice:
    """One model's prices, by the length of the prompt."""

    tiers: tuple[PriceTier, ...]

    def cost(self, usage: Usage) -> float:
        """US dollars for the tokens of one request."""
        return next(tier for tier in self.tiers if usage.prompt_tokens <= tier.max_prompt_tokens).cost(usage)


@dataclass(frozen=True, slots=True)
class PriceList:
    """Prices by model, and since when they are."""

    date: str
    prices: Mapping[str, ModelPrice]


@cache
def load_price_list() -> PriceList:
    """The prices in the package."""
    data: dict[str, Any] = json.loads(resources.files("qproxy.ledger").joinpath("prices.json").read_bytes())
    prices = {
        model: ModelPrice(tuple(PriceTier(**tier) for tier in tiers))
        for model, tiers in data["models"].items()
    }
    return PriceList(data["date"], prices)


class Pricing:
    """Which price a request has: the operator's word, else the list's for the accounts that it is about."""

    def __init__(self, own: Mapping[str, ModelPrice] | None = None, listed_for: Iterable[str] = ()) -> None:
        self._configured = own or {}
        self._price_of = frozenset(listed_for)

    def __repr__(self) -> str:
        return (
            f"<Pricing of {len(self._configured)} own prices, listed ones for {len(self._price_of)} accounts>"
        )

    def cost(self, account: str, model: str, usage: Usage) -> float | None:
        """US dollars; None where no price is known."""
        price = self._configured.get(model)
        if price is None and account in self._price_of:
            price = load_price_list().prices.get(model)
        return None if price is None else price.cost(usage)
