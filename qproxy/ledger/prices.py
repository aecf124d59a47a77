"""Prices of tokens, if known: an estimate, not a bill.

`prices.json` has Model Studio's international list prices with their date and sources. They apply to pay-as-you-go
accounts outside China; plans are paid differently, and other regions and your own servers have no price here unless the
setting `prices` has one. A model without a known price costs None, which is not 0.
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
"""Fraction of the input price, for models without a price for cached tokens."""


@dataclass(frozen=True, slots=True)
class PriceTier:
    """Prices for prompts of up to `max_prompt_tokens` tokens; US dollars per million tokens."""

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
    """The prices of one model, by the length of the prompt."""

    tiers: tuple[PriceTier, ...]

    def cost(self, usage: Usage) -> float:
        """Return the cost of one request in US dollars."""
        return next(tier for tier in self.tiers if usage.prompt_tokens <= tier.max_prompt_tokens).cost(usage)


@dataclass(frozen=True, slots=True)
class PriceList:
    """Prices by model, and their date."""

    date: str
    prices: Mapping[str, ModelPrice]


@cache
def load_price_list() -> PriceList:
    """Return the price list of the package."""
    data: dict[str, Any] = json.loads(resources.files("qproxy.ledger").joinpath("prices.json").read_bytes())
    prices = {
        model: ModelPrice(tuple(PriceTier(**tier) for tier in tiers))
        for model, tiers in data["models"].items()
    }
    return PriceList(data["date"], prices)


class Pricing:
    """Finds the price of a request: the operator's, or the list's for the accounts that it applies to."""

    def __init__(self, own: Mapping[str, ModelPrice] | None = None, listed_for: Iterable[str] = ()) -> None:
        self._configured = own or {}
        self._price_of = frozenset(listed_for)

    def __repr__(self) -> str:
        return (
            f"<Pricing of {len(self._configured)} own prices, listed ones for {len(self._price_of)} accounts>"
        )

    def cost(self, account: str, model: str, usage: Usage) -> float | None:
        """Return the cost in US dollars, None without a known price."""
        price = self._configured.get(model)
        if price is None and account in self._price_of:
            price = load_price_list().prices.get(model)
        return None if price is None else price.cost(usage)
