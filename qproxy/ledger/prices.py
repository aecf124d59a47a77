"""Prices of tokens and of other units, if known: an estimate, not a bill.

The catalog holds Model Studio's international list prices with their date and sources. They apply to
pay-as-you-go accounts outside China; plans are paid differently, and other regions and your own servers have
no price here unless the setting `prices` (or a `[[models]]` table) has one. A model without a known price
costs None, which is not 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from qproxy.ledger.units import UNITS
from qproxy.wire.events import JSON, Usage
from qproxy.wire.models import ModelCatalog
from qproxy.wire.models.catalog import EMPTY

CURRENCY = "USD"
"""The ledger's currency."""


@dataclass(frozen=True, slots=True)
class PriceTier:
    """Prices for prompts of up to `max_prompt_tokens` tokens, per million tokens of each kind."""

    input: float
    output: float
    cached: float | None = None
    """Read from the implicit cache."""
    explicit_cached: float | None = None
    cache_write: float | None = None
    """Written to the explicit cache, for five minutes."""
    cache_write_1h: float | None = None
    thinking_output: float | None = None
    """Of the whole answer, when it has thoughts."""
    max_prompt_tokens: float = float("inf")

    def cost(self, usage: Usage, terms: Mapping[str, Any]) -> float:
        """Return the cost of one request's tokens; a kind without a price has the terms' share of the
        input's."""

        def price(kind: str, share: str) -> float:
            known: float | None = getattr(self, kind)
            return self.input * float(terms.get(share, 1.0)) if known is None else known

        cached = price("cached", "cached_share")
        if usage.prompt_details.get("cache_type") == "ephemeral" and self.explicit_cached is not None:
            cached = self.explicit_cached
        five_minutes, an_hour = usage.cache_writes
        read = min(usage.cached_tokens, usage.prompt_tokens)
        fresh = max(0, usage.prompt_tokens - read - five_minutes - an_hour)
        written = five_minutes * price("cache_write", "cache_write_share")
        written += an_hour * price("cache_write_1h", "cache_write_1h_share")
        output = self.output
        if usage.reasoning_tokens and self.thinking_output is not None:
            output = self.thinking_output
        return (fresh * self.input + read * cached + written + usage.completion_tokens * output) / 1e6

    def full_cost(self, usage: Usage) -> float:
        """Return the cost of one request's tokens if no token were read from a cache or written to it."""
        output = self.output
        if usage.reasoning_tokens and self.thinking_output is not None:
            output = self.thinking_output
        return (usage.prompt_tokens * self.input + usage.completion_tokens * output) / 1e6


TOKEN_PRICES = frozenset(PriceTier.__dataclass_fields__)
PRICE_CELLS = TOKEN_PRICES | {"currency", "region", *UNITS}
"""What a tier in the catalog may hold; units are for a million of each."""


@dataclass(frozen=True, slots=True)
class Charge:
    """The cost of one request in the currency of its price, and in US dollars if there is a rate."""

    amount: float
    full_amount: float
    """Without the cache and the flex tier."""
    currency: str = CURRENCY
    rate: float | None = 1.0
    """US dollars for one unit of the currency."""

    @property
    def cost(self) -> float | None:
        return None if self.rate is None else self.amount * self.rate

    @property
    def full_cost(self) -> float | None:
        return None if self.rate is None else self.full_amount * self.rate


@dataclass(frozen=True, slots=True)
class ModelPrice:
    """The prices of one model, by the length of the prompt."""

    tiers: tuple[PriceTier, ...]
    terms: Mapping[str, Any] = field(default_factory=dict)
    """What holds for every tier (`ModelCatalog.price_terms`)."""
    units: Mapping[str, float] = field(default_factory=dict)
    """Prices of a million of each unit."""

    currency: str = CURRENCY

    def cost(self, usage: Usage, used: Mapping[str, float] | None = None) -> float | None:
        """Return the cost of one request, as `charge`."""
        charge = self.charge(usage, used)
        return None if charge is None else charge.amount

    def charge(
        self, usage: Usage, used: Mapping[str, float] | None = None, *, flex: bool = False
    ) -> Charge | None:
        """Return the cost of one request, of which `used` has the units; None if nothing it used has a price.

        A search of the web without a price leaves the cost unknown: other units without one are other
        measures of the same request. The flex tier has no cache, and its share is the terms'.
        """
        costs = [used[unit] * self.units[unit] / 1e6 for unit in self.units if used and unit in used]
        if used and used.get("searches") and "searches" not in self.units:
            return None
        amount = full = sum(costs)
        if self.tiers and (usage.prompt_tokens or usage.completion_tokens or not costs):
            fitting = (tier for tier in self.tiers if usage.prompt_tokens <= tier.max_prompt_tokens)
            tier = next(fitting, self.tiers[-1])
            tokens = tier.full_cost(usage)
            full += tokens
            if not flex:
                amount += tier.cost(usage, self.terms)
            elif "flex_share" in self.terms:
                amount += tokens * float(self.terms["flex_share"])
            else:
                return None
        elif not costs:
            return None
        return Charge(amount, full, self.currency)


def list_price(tiers: Iterable[Mapping[str, JSON]], terms: Mapping[str, Any]) -> ModelPrice | None:
    """Return the price in a row; None if it has none in the ledger's currency and the list's region."""
    found: list[PriceTier] = []
    units: dict[str, float] = {}
    for tier in tiers:
        cells = {**terms, **tier}
        if cells.get("currency") != CURRENCY or cells.get("region") != terms.get("region"):
            continue
        units |= {unit: tier[unit] for unit in UNITS if unit in tier}
        if "input" in tier and "output" in tier:
            found.append(PriceTier(**{kind: tier[kind] for kind in TOKEN_PRICES & tier.keys()}))
    return ModelPrice(tuple(found), terms, units) if found or units else None


class Pricing:
    """Finds the price of a request: the operator's, or the list's for the accounts that it applies to."""

    def __init__(
        self,
        own: Mapping[str, ModelPrice] | None = None,
        listed_for: Iterable[str] = (),
        catalog: ModelCatalog = EMPTY,
        rates: Mapping[str, float] | None = None,
    ) -> None:
        """`rates` are US dollars for one unit of other currencies."""
        self._configured = own or {}
        self._listed_for = frozenset(listed_for)
        self._catalog = catalog
        self._rates = {**(rates or {}), CURRENCY: 1.0}
        self._listed: dict[str, ModelPrice] = {}
        for spec in catalog.models():
            price = list_price(spec.prices or (), catalog.price_terms)
            if price is not None:
                self._listed[spec.id] = price

    def __repr__(self) -> str:
        own, accounts = len(self._configured), len(self._listed_for)
        return f"<Pricing of {own} own prices, listed ones for {accounts} accounts>"

    def price(self, account: str, model: str) -> ModelPrice | None:
        """Return the price of a model at an account, None if it is not known."""
        price = self._configured.get(model)
        if price is None and account in self._listed_for:
            spec = self._catalog.find(model)
            price = self._listed.get(spec.id) if spec is not None and spec.prices else None
        return price

    def is_priced(self, account: str, model: str) -> bool:
        """Return whether the cost of a model at an account is known in US dollars."""
        price = self.price(account, model)
        return price is not None and price.currency in self._rates

    def charge(
        self,
        account: str,
        model: str,
        usage: Usage,
        used: Mapping[str, float] | None = None,
        *,
        flex: bool = False,
    ) -> Charge | None:
        """Return the cost of a request, None without a known price."""
        price = self.price(account, model)
        charge = None if price is None else price.charge(usage, used, flex=flex)
        return None if charge is None else replace(charge, rate=self._rates.get(charge.currency))

    def cost(
        self, account: str, model: str, usage: Usage, used: Mapping[str, float] | None = None
    ) -> float | None:
        """Return the cost in US dollars, None without a known price or a rate for its currency."""
        charge = self.charge(account, model, usage, used)
        return None if charge is None else charge.cost
