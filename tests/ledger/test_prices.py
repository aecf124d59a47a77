"""What tokens cost: the list's prices where they hold, the operator's where there are any, else nothing said."""

import json
import re
from importlib import resources

import pytest

from qproxy.ledger.prices import ModelPrice, PriceTier, Pricing, load_price_list
from qproxy.wire.events import Usage

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
    "an embedding": ("text-embedding-v4", Usage(1000, 0), 0.00007),
}


@pytest.mark.parametrize(("model", "usage", "cost"), CASES.values(), ids=CASES)
def test_listed_prices(model, usage, cost):
    """Dollars for tokens, by the length of the prompt, for cached tokens and for thoughts."""
    assert Pricing(listed_for=["intl"]).cost("intl", model, usage) == pytest.approx(cost)


def test_where_no_price_is_known():
    """An unknown model, or an account that the list is not about, costs None and not 0."""
    pricing = Pricing(listed_for=["intl"])
    assert pricing.cost("intl", "qwen-nobody-knows", USAGE) is None
    assert pricing.cost("home", "qwen-plus", USAGE) is None


def test_the_operators_word():
    """A price of the operator's holds for every account, and before the list's."""
    pricing = Pricing({"qwen-plus": ModelPrice((PriceTier(1.0, 2.0),))}, ["intl"])
    assert pricing.cost("intl", "qwen-plus", USAGE) == pricing.cost("home", "qwen-plus", USAGE) == 3.0


def test_the_list_says_what_it_is():
    """The file names its date and sources; its tiers rise and the last one is open."""
    data = json.loads(resources.files("qproxy.ledger").joinpath("prices.json").read_bytes())
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", data["date"])
    assert data["sources"]
    assert load_price_list().prices.keys() == data["models"].keys()
    for price in load_price_list().prices.values():
        bounds = [tier.max_prompt_tokens for tier in price.tiers]
        assert bounds == sorted(set(bounds))
        assert bounds[-1] == float("inf")
