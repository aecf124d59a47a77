"""Budgets in money: the estimate is reserved and settled, and a model without a price is refused."""

import pytest

from qproxy import cli
from qproxy.access.api_keys import Quota
from qproxy.backends.local import key_file
from qproxy.config.fallbacks import FallbackConfig
from qproxy.config.prices import PriceConfig
from qproxy.emulator import ScriptedReply
from tests.helpers import HELLO, MODEL, world

PRICES = (PriceConfig(MODEL, input=1000.0, output=2000.0),)
OVERDUE = ScriptedReply(
    (b'{"error": {"code": "Arrearage", "message": "Access denied."}}',),
    status=400,
    content_type="application/json",
)


@pytest.fixture
def header(tmp_path):
    """The header of a key that may cost two cents a month."""
    _, secret = key_file.create(tmp_path / "keys.json", name="bob", budgets=(Quota("month", usd=0.02),))
    return (b"authorization", b"Bearer " + secret.encode())


def served(tmp_path, **settings):
    return world(keys_file=str(tmp_path / "keys.json"), ledger=str(tmp_path / "ledger.sqlite3"), **settings)


async def test_requests_are_charged_until_the_money_is_spent(tmp_path, header):
    """What a request costs is counted, and the first one after the money is spent is a 429."""
    async with served(tmp_path, prices=PRICES) as it:
        assert (await it.post(HELLO, headers=[header]))[0] == 200
        status, _, answer = await it.post(HELLO, headers=[header])
        assert (status, answer["error"]["code"]) == (429, "insufficient_quota")
        assert "budget of 0.02 US dollars per month" in answer["error"]["message"]


async def test_the_estimate_is_reserved(tmp_path, header):
    """A request is counted by its prompt and its largest response while it runs."""
    async with served(tmp_path, prices=PRICES) as it:
        reserved = []
        limiter = it.server.state.usage_limiter
        reserve = limiter.reserve

        async def record(key, amounts):
            reserved.append(amounts["usd"])
            return await reserve(key, amounts)

        limiter.reserve = record
        await it.post({**HELLO, "max_tokens": 5}, headers=[header])
        assert reserved[0] >= 5 * 2000 / 1e6


async def test_a_model_without_a_price_is_refused(tmp_path, header):
    """Its request is a 403 that names the settings, unless unpriced_models allows it."""
    async with served(tmp_path) as it:
        status, _, answer = await it.post(HELLO, headers=[header])
        assert (status, answer["error"]["code"]) == (403, "model_price_unknown")
        assert "unpriced_models" in answer["error"]["message"]
        assert not it.emulator.requests
    async with served(tmp_path, unpriced_models="allow") as it:
        assert (await it.post(HELLO, headers=[header]))[0] == 200


async def test_a_price_in_another_currency_needs_a_rate(tmp_path, header):
    """A price in yuan is known once exchange_rates has a rate for it."""
    prices = (PriceConfig(MODEL, input=1.0, output=2.0, currency="CNY"),)
    async with served(tmp_path, prices=prices) as it:
        assert (await it.post(HELLO, headers=[header]))[0] == 403
    async with served(tmp_path, prices=prices, exchange_rates={"CNY": 0.14}) as it:
        assert (await it.post(HELLO, headers=[header]))[0] == 200
        (row,) = await it.server.state.ledger.recent_requests(1)
        assert (row["currency"], row["cost"]) == ("CNY", pytest.approx(row["amount"] * 0.14))


async def test_a_fallback_without_a_price_is_passed_over(tmp_path, header):
    """A key with a budget in money falls back only to models with a known price."""
    prices = (PriceConfig(MODEL, input=1.0, output=2.0), PriceConfig("qwen3-max", input=1.0, output=2.0))
    fallbacks = (FallbackConfig(MODEL, ["qwen3.8-flash", "qwen3-max"]),)
    async with served(tmp_path, prices=prices, fallbacks=fallbacks) as it:
        it.emulator.script(OVERDUE)
        _, headers, _ = await it.post(HELLO, headers=[header])
        assert headers["x-qproxy-served-model"] == "qwen3-max"
        (row,) = await it.server.state.ledger.recent_requests(1)
        assert (row["served_model"], row["fallback"]) == ("qwen3-max", "quota")


def test_keys_with_a_budget_in_money(tmp_path, monkeypatch, capsys):
    """`qproxy keys create --budget-usd month=20` stores the amount, and the list shows it."""
    monkeypatch.setenv("QPROXY_HOME", str(tmp_path))
    assert cli.main(["keys", "create", "--name", "bob", "--budget-usd", "month=20.5"]) == 0
    assert key_file.read(tmp_path / "keys.json")[0].budgets == (Quota("month", usd=20.5),)
    assert cli.main(["keys", "list"]) == 0
    assert "month: 20.5 US dollars" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        cli.main(["keys", "create", "--budget-usd", "month=free"])
