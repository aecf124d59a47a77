"""The bill of an agent's session with each policy of the prompt cache, against the emulator's cache."""

import dataclasses
from itertools import pairwise

import pytest

from qproxy.bootstrap.models import package_catalog
from qproxy.emulator import Emulator
from qproxy.emulator.unverified import NATURAL
from qproxy.ledger.prices import list_price
from qproxy.wire.events import Usage
from qproxy.wire.prompt_cache.markers import MARKS, place_markers, unmarked
from scripts import cache_sim
from tests.helpers import world

MODEL = "qwen3.8-max"
TURNS = 40


def session(marked):
    """Yield the messages of an agent's requests; a client that marks does so at both ends."""
    messages = [cache_sim.message(("system", 0, 4000)), cache_sim.message(("user", 1, 200))]
    for number in range(TURNS):
        yield place_markers(messages, {0, len(messages) - 1}) if marked else messages
        reply = cache_sim.message(("assistant", 2 * number + 2, 60))
        messages = [*messages, reply, cache_sim.message(("user", 2 * number + 3, 500))]


async def bill(mode, *, marked=False, implicit=False, **settings):
    """Return the cost of a session's prompts by the usage that the client saw, and the sent bodies."""
    spec, catalog = package_catalog().get(MODEL), package_catalog()
    price, spent = list_price(spec.prices or (), catalog.price_terms), 0.0
    assert price is not None
    facts = dataclasses.replace(NATURAL, implicit_cache=implicit)
    async with world(emulator=Emulator(facts=facts), prompt_cache=mode, **settings) as it:
        for messages in session(marked):
            status, _, answer = await it.post({"model": MODEL, "messages": messages, "max_tokens": 5})
            assert status == 200, answer
            usage = answer["usage"]
            cost = price.cost(Usage(usage["prompt_tokens"], prompt_details=usage["prompt_tokens_details"]))
            assert cost is not None
            spent += cost
        return spent, [request.body for request in it.emulator.requests if request.body]


async def test_the_bill_of_forty_turns():
    """Auto costs a quarter of off, and a tenth more than a client's breakpoints: it measures two requests."""
    off, _ = await bill("off", marked=True)
    markers, _ = await bill("markers", marked=True)
    auto, _ = await bill("auto")
    assert auto < off / 4
    assert auto < markers * 1.1


async def test_a_working_implicit_cache_costs_no_write():
    """Where the implicit cache works, auto costs what off does."""
    off, _ = await bill("off", implicit=True)
    auto, bodies = await bill("auto", implicit=True)
    assert auto == off
    assert "cache_control" not in str(bodies)


async def test_earlier_messages_stay_the_same():
    """Each request begins with the messages of the one before, breakpoints and the form of texts aside."""
    _, bodies = await bill("auto")

    def plain(body):
        return [
            part["text"] if isinstance(part, dict) else part
            for message in map(unmarked, body["messages"])
            for part in ([message["content"]] if isinstance(message["content"], str) else message["content"])
        ]

    texts = [plain(body) for body in bodies]
    assert all(after[: len(before)] == before for before, after in pairwise(texts))
    assert sum(str(bodies[-1]).count(mark) for mark in MARKS) == 3


async def test_a_clients_own_breakpoints_win():
    """Requests with breakpoints are forwarded with those and no others."""
    _, marked = await bill("markers", marked=True)
    _, planned = await bill("auto", marked=True)
    assert planned == marked


async def test_a_models_own_mode():
    """A pattern of models has a mode of its own."""
    _, bodies = await bill("auto", prompt_cache_models={"qwen3.8*": "off"})
    assert "cache_control" not in str(bodies)


async def test_removed_options_are_named():
    """Off removes a client's options too, and names what it removed."""
    body = {"model": "qwen4-max", "messages": [{"role": "user", "content": "hi"}], "prompt_cache_options": {}}
    async with world(prompt_cache="off") as it:
        _, headers, _ = await it.post(body)
        assert headers["x-qproxy-ignored-params"] == "prompt_cache"
        assert "prompt_cache_options" not in it.emulator.requests[-1].body


@pytest.mark.parametrize(("implicit", "allow_1h"), [(False, True), (True, False)])
def test_the_recorded_sessions(implicit, allow_1h):
    """Over the recorded sessions auto is within 5 % of the best policy, and in none of them above off."""
    rows = cache_sim.table(cache_sim.load(), implicit=implicit, allow_1h=allow_1h)
    assert len(rows) >= 5
    total = cache_sim.total(rows)
    assert total["auto"] <= 1.05 * cache_sim.best(total)
    assert all(row["auto"] <= row["off"] * 1.000001 for row in rows)
