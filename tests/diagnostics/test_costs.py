"""`qproxy check --cost` computes what would have saved most."""

import pytest

from qproxy.diagnostics.costs import cost_findings
from qproxy.ledger import Pricing
from qproxy.ledger.prices import ModelPrice, PriceTier
from qproxy.wire.models import ModelCatalog, ModelRow

PRICES = {
    "big": ModelPrice((PriceTier(10.0, 20.0, 1.0),)),
    "small": ModelPrice((PriceTier(1.0, 2.0),)),
}
ROWS = [
    ModelRow("big", tasks=["chat"], tools=True, batch_chat=True),
    ModelRow("small", tasks=["chat"], tools=True, prices=[{"input": 1.0, "output": 2.0}]),
]


def row(**changes):
    values = {
        "id": "a", "ended": 1000.0, "key": "bob", "account": "one", "served_model": "big", "stream": 1,
        "prompt_tokens": 100_000, "completion_tokens": 1000, "cached_tokens": 0, "cost": 1.02,
        "full_cost": 1.02, "tier": None,
    }  # fmt: skip
    return {**values, **changes}


def messages(rows, flex=("one",)):
    found = cost_findings(rows, Pricing(PRICES), ModelCatalog({}, ROWS), flex)
    return [(each.name, each.state, each.message) for each in found]


def test_repeated_prompts_would_be_read_from_the_cache():
    """A prompt soon after another one of the same key and model saves the part that was not cached."""
    name, state, message = messages([row(), row(ended=1060.0)])[1]
    assert (name, state) == ("prompt cache", "warning")
    assert "$0.90 (44%)" in message
    assert "$0.00" in messages([row(), row(ended=2000.0)])[1][2]
    assert "$0.00" in messages([row(), row(ended=1060.0, key="amy")])[1][2]


@pytest.mark.parametrize(("flex", "dollars"), [(("one",), "$0.51 (50%)"), ((), "$0.00 (0%)")])
def test_whole_requests_may_wait(flex, dollars):
    """Half the price of requests that were not streamed is saved at accounts with a batch host."""
    found = {name: message for name, _, message in messages([row(stream=0)], flex)}
    assert dollars in found["flex tier"]


def test_short_turns_may_use_a_smaller_model():
    """Short turns are computed at the price of the cheapest model, and long ones are left alone."""
    short = row(prompt_tokens=1000, completion_tokens=100, cost=0.012, full_cost=0.012)
    name, state, message = messages([short])[1]
    assert (name, state) == ("smaller model", "warning")
    assert "small serves the 1 short turns" in message
    assert "(90%)" in message


def test_unknown_costs_are_named():
    """Requests without a price are counted as unknown, and nothing is saved of nothing."""
    (_, _, message), *ways = messages([row(cost=None, full_cost=None)])
    assert message == "$0.00 for 0 requests of 30 days, and 1 of unknown cost"
    assert {state for _, state, _ in ways} == {"ok"}
