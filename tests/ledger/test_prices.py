"""Costs of tokens: the operator's prices, otherwise the catalog's, otherwise None."""

import re
import tomllib
from importlib import resources

import pytest

from qproxy.bootstrap.models import build_catalog, package_catalog
from qproxy.bootstrap.telemetry import build_pricing
from qproxy.config import Config
from qproxy.config.accounts import ConfigError
from qproxy.config.prices import PriceConfig
from qproxy.ledger.prices import ModelPrice, PriceTier, Pricing, list_price
from qproxy.wire.events import Usage
from qproxy.wire.models import ModelRow
from tests.helpers import accounts

USAGE = Usage(1_000_000, 1_000_000, 2_000_000)

CASES = {
    "plain": ("qwen-max", Usage(1000, 1000), 0.0016 + 0.0064),
    "first tier": ("qwen3-max", Usage(32_000, 0), 0.0384),
    "next tier, for all of the prompt": ("qwen3-max", Usage(32_001, 0), 32_001 * 2.4e-6),
    "beyond the last tier": ("qwen3-max", Usage(300_000, 0), 0.9),
    "cached at its own price": ("qwen3.7-plus", Usage(1000, 0, 0, {"cached_tokens": 1000}), 0.00008),
    "cached at a fifth": ("qwen-plus", Usage(1000, 0, 0, {"cached_tokens": 500}), 0.0002 + 0.00004),
    "thoughts": ("qwen-turbo", Usage(0, 1000, 0, {}, {"reasoning_tokens": 1}), 0.0005),
    "without thoughts": ("qwen-turbo", Usage(0, 1000), 0.0002),
    "read from the implicit cache": ("qwen4-max", Usage(1000, 0, 0, {"cached_tokens": 1000}), 0.000075),
    "read from the explicit cache": (
        "qwen3.7-max",
        Usage(1000, 0, 0, {"cached_tokens": 1000, "cache_type": "ephemeral"}),
        0.00025,
    ),
    "written to the cache": ("qwen4-max", Usage(1000, 0, 0, {"cache_creation_input_tokens": 1000}), 0.001875),
    "written for an hour": (
        "qwen4-max",
        Usage(
            1000,
            0,
            0,
            {"cache_creation_input_tokens": 1000, "cache_creation": {"ephemeral_1h_input_tokens": 400}},
        ),
        600 * 1.875e-6 + 400 * 3e-6,
    ),
    "written without a price of its own": (
        "qwen-plus",
        Usage(1000, 0, 0, {"cache_creation_input_tokens": 1000}),
        0.0005,
    ),
    "a listed snapshot": ("qwen3.7-plus-2026-05-26", Usage(1000, 0), 0.0004),
    "an embedding": ("text-embedding-v4", Usage(1000, 0), 0.00007),
}


@pytest.mark.parametrize(("model", "usage", "cost"), CASES.values(), ids=CASES)
def test_listed_prices(model, usage, cost):
    """Costs are in dollars, by the length of the prompt, for cached tokens and for reasoning."""
    assert Pricing(listed_for=["intl"], catalog=package_catalog()).cost(
        "intl", model, usage
    ) == pytest.approx(cost)


@pytest.mark.parametrize("model", ["qwen5-max", "qwen-plus-2027-01-01", "qwen3-tts-flash"])
def test_no_price_is_inferred(model):
    """A model that only resembles another one, or is not priced by tokens, costs None."""
    pricing = Pricing(listed_for=["intl"], catalog=package_catalog())
    assert pricing.cost("intl", model, USAGE) is None


UNIT_CASES = {
    "characters": ("qwen3-tts-flash", {"characters": 2000}, Usage(), 0.02),
    "pictures": ("qwen-image-2.0", {"images": 2}, Usage(), 0.07),
    "tokens of a model with a price for characters": ("qwen3-tts-flash", {"characters": 1000}, USAGE, 0.01),
    "another measure of tokens with a price": ("qwen-max", {"seconds": 3.0}, Usage(1000, 1000), 0.008),
    "a unit without a price": ("qwen3-tts-flash", {"seconds": 3.0}, Usage(), None),
    "searches without a price": ("qwen-max", {"searches": 1}, Usage(1000, 1000), None),
}


@pytest.mark.parametrize(("model", "used", "usage", "cost"), UNIT_CASES.values(), ids=UNIT_CASES)
def test_prices_of_units(model, used, usage, cost):
    """Units cost what their model's list says; a cost that is not wholly known is None."""
    pricing = Pricing(listed_for=["intl"], catalog=package_catalog())
    found = pricing.cost("intl", model, usage, used)
    assert found == (None if cost is None else pytest.approx(cost))


@pytest.mark.parametrize(
    "table", [PriceConfig("m"), PriceConfig("m", input=1.0), PriceConfig("m", cached=1.0)]
)
def test_half_a_price_is_rejected(table):
    """A [[prices]] table with no price, or without one of input and output, is an error of the settings."""
    with pytest.raises(ConfigError, match="a price of tokens has an input and an output"):
        build_pricing(Config(accounts=accounts("one"), prices=(table,)), package_catalog())


def test_the_operators_price_of_a_unit():
    """A [[prices]] table may price a unit alone."""
    config = Config(accounts=accounts("one"), prices=(PriceConfig("voice", characters=5.0),))
    pricing = build_pricing(config, package_catalog())
    assert pricing.cost("one", "voice", Usage(), {"characters": 1_000_000}) == 5.0


def test_a_price_in_a_models_row():
    """The tiers of a [[models]] table apply as the package's do."""
    row = ModelRow("qwen5-max", prices=[{"input": 1.0, "output": 2.0}])
    assert Pricing(listed_for=["intl"], catalog=build_catalog((row,))).cost("intl", "qwen5-max", USAGE) == 3.0


def test_the_last_tier_applies_to_any_longer_prompt():
    """A prompt beyond the last tier's bound is priced by that tier."""
    tier = {"input": 1.0, "output": 0.0, "max_prompt_tokens": 10}
    price = list_price([tier], package_catalog().price_terms)
    assert price is not None
    assert price.cost(Usage(1_000_000)) == 1.0


def test_a_models_row_applies_to_every_account():
    """A [[prices]] table does, too, and takes precedence for its models."""
    rows = (
        ModelRow("mine", prices=[{"input": 1.0, "output": 2.0}]),
        ModelRow("both", prices=[{"input": 9.0, "output": 9.0}]),
    )
    config = Config(accounts=accounts("one"), model_rows=rows, prices=(PriceConfig("both", 2.0, 2.0),))
    pricing = build_pricing(config, build_catalog(rows))
    assert (pricing.cost("one", "mine", USAGE), pricing.cost("one", "both", USAGE)) == (3.0, 4.0)


def test_an_unknown_price_is_none():
    """An unknown model, or an account without list prices, costs None and not 0."""
    pricing = Pricing(listed_for=["intl"], catalog=package_catalog())
    assert pricing.cost("intl", "qwen-nobody-knows", USAGE) is None
    assert pricing.cost("home", "qwen-plus", USAGE) is None


def test_the_operators_price_takes_precedence():
    """The operator's price applies to every account, before the catalog's."""
    pricing = Pricing({"qwen-plus": ModelPrice((PriceTier(1.0, 2.0),))}, ["intl"], package_catalog())
    assert pricing.cost("intl", "qwen-plus", USAGE) == pricing.cost("home", "qwen-plus", USAGE) == 3.0


def test_the_catalog_is_documented_and_ordered():
    """The catalog names its date and sources; the tiers of a price rise and the last one is open."""
    catalog = package_catalog()
    data = tomllib.loads(resources.files("qproxy.wire.models").joinpath("models.toml").read_text("utf-8"))
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", catalog.price_terms["date"])
    assert data["sources"]
    prices = [list_price(spec.prices or (), catalog.price_terms) for spec in catalog.models()]
    listed = [price for price in prices if price is not None and price.tiers]
    assert len(listed) > 40
    for price in listed:
        bounds = [tier.max_prompt_tokens for tier in price.tiers]
        assert bounds == sorted(set(bounds))
        assert bounds[-1] == float("inf")


def test_what_cache_and_flex_save():
    """The full cost has neither; a flex request has half of it and no cache, or an unknown cost without a
    share."""
    price = ModelPrice((PriceTier(2.0, 4.0, 0.5),), {"flex_share": 0.5})
    usage = Usage(1_000_000, 500_000, 0, {"cached_tokens": 400_000})
    usual, flex = price.charge(usage), price.charge(usage, flex=True)
    assert usual is not None
    assert flex is not None
    assert usual.full_amount == 4.0
    assert usual.amount == pytest.approx(0.6 * 2 + 0.4 * 0.5 + 2.0)
    assert (flex.full_amount, flex.amount) == (4.0, 2.0)
    assert ModelPrice((PriceTier(2.0, 4.0),)).charge(usage, flex=True) is None


def test_prices_in_other_currencies():
    """An amount keeps its currency, and is a cost in US dollars only with a rate."""
    own = {"m": ModelPrice((PriceTier(10.0, 10.0),), currency="CNY")}
    charge = Pricing(own, rates={"CNY": 0.14}).charge("one", "m", Usage(1_000_000))
    assert charge is not None
    assert (charge.amount, charge.currency) == (10.0, "CNY")
    assert charge.cost == pytest.approx(1.4)
    assert Pricing(own).cost("one", "m", Usage(1_000_000)) is None
    assert not Pricing(own).is_priced("one", "m")
