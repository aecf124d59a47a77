"""The flex tier: half the price at the batch host, told truthfully; connections are kept alive meanwhile."""

import json

import pytest
import trio

from qproxy.config.accounts import AccountConfig, resolve_account
from qproxy.config.prices import PriceConfig
from qproxy.emulator import PauseStep, ScriptedReply
from tests.helpers import HELLO, MODEL, accounts, frames, world

FLEX = {**HELLO, "service_tier": "flex"}
URL = "http://batch.test/v1"
BUSY = ScriptedReply(
    (b'{"error": {"code": "x", "message": "busy"}}',), status=429, content_type="application/json"
)
WHOLE = json.dumps({
    "id": "c", "object": "chat.completion", "created": 1, "model": MODEL,
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "later"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
}).encode()  # fmt: skip


def late(seconds):
    """Return an answer whose head comes after some time."""
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(WHOLE)
    return ScriptedReply((PauseStep(seconds), head + WHOLE), status=None)


def served(**settings):
    settings.setdefault("accounts", accounts("one", flex_url=URL))
    return world(**settings)


def hosts(it):
    return [dict(seen.headers)["host"] for seen in it.emulator.requests]


async def test_a_flex_request_goes_whole_to_the_batch_host(tmp_path):
    """It is sent whole, and its answer and its row of the ledger name the tier, at half the price."""
    prices = (PriceConfig(MODEL, input=10.0, output=20.0),)
    async with served(prices=prices, ledger=str(tmp_path / "ledger.sqlite3")) as it:
        status, _, answer = await it.post(FLEX)
        assert (status, answer["service_tier"]) == (200, "flex")
        assert hosts(it) == ["batch.test"]
        sent = it.emulator.requests[0].body
        assert "service_tier" not in sent
        assert not sent.get("stream")
        (row,) = await it.server.state.ledger.recent_requests(1)
        assert (row["tier"], row["cost"]) == ("flex", pytest.approx(row["full_cost"] / 2))


@pytest.mark.parametrize("settings", [{"accounts": accounts("one")}, {}], ids=["account", "model"])
async def test_other_accounts_and_models_are_served_as_usual(settings):
    """Without a batch host, or for a model that it does not have, the answer says default."""
    body = FLEX if settings else {**FLEX, "model": "qwen3-coder-plus"}
    async with served(**settings) as it:
        status, _, answer = await it.post(body)
        assert (status, answer["service_tier"]) == (200, "default")
        assert hosts(it) == ["one.test"]


async def test_a_stream_is_kept_alive(autojump_clock):
    """Its client gets comments while the host works, and then the answer as deltas."""
    async with served(keep_alive_interval=15.0) as it:
        it.emulator.script(late(1000))
        status, text = await it.stream(FLEX)
        assert status == 200
        assert text.count(":") >= 1000 // 15
        pieces = [json.loads(frame) for frame in frames(text) if frame != "[DONE]"]
        assert "".join(c["delta"].get("content") or "" for p in pieces for c in p["choices"]) == "later"
        assert "flex" in {piece.get("service_tier") for piece in pieces}
        assert frames(text)[-1] == "[DONE]"


async def test_its_time_limit_is_its_own(autojump_clock):
    """The usual limit for the first byte does not hold, flex_timeout does."""
    async with served() as it:
        it.emulator.script(late(1000))
        assert (await it.post(FLEX))[0] == 200
    async with served(flex_timeout=500.0) as it:
        it.emulator.script(late(1000))
        status, _, answer = await it.post(FLEX)
        assert (status, answer["error"]["code"]) == (429, "resource_unavailable")
        assert "flex_timeout" in answer["error"]["message"]


async def test_promotion_to_the_usual_tier(autojump_clock):
    """A request that waits too long, or is refused, moves to the usual host, and the answer says default."""
    for reply in (late(1000), BUSY):
        async with served(flex_promotion_after=60.0) as it:
            it.emulator.script(reply)
            began = trio.current_time()
            status, _, answer = await it.post(FLEX)
            assert (status, answer["service_tier"]) == (200, "default")
            assert hosts(it) == ["batch.test", "one.test"]
            assert trio.current_time() - began < 61


async def test_a_refusal_does_not_cool_the_account_down():
    """Without a promotion it is a 429 resource_unavailable, and usual requests are served at once."""
    async with served() as it:
        it.emulator.script(BUSY)
        status, _, answer = await it.post(FLEX)
        assert (status, answer["error"]["code"]) == (429, "resource_unavailable")
        assert (await it.post(HELLO))[0] == 200


async def test_a_late_failure_of_a_stream_is_an_error_event(autojump_clock):
    """The error of the batch host is the last event of the stream that has started."""
    async with served() as it:
        it.emulator.script(BUSY)
        status, text = await it.stream(FLEX)
        assert status == 200
        assert "resource_unavailable" in text


def test_the_default_host():
    """Pay-as-you-go keys of Beijing have Model Studio's batch host, and no other account has one."""
    beijing = resolve_account(AccountConfig("a", preset="beijing", key="sk-x"))
    assert beijing.flex_url == "https://batch.dashscope.aliyuncs.com/compatible-mode/v1"
    assert resolve_account(AccountConfig("a", preset="singapore", key="sk-x")).flex_url == ""
    assert resolve_account(AccountConfig("a", preset="beijing", key="sk-x", plan="token")).flex_url == ""


async def test_responses_name_the_tier():
    """A response has the tier that served it, whatever the client has requested."""
    body = {"model": MODEL, "input": "hello", "service_tier": "flex"}
    async with served() as it:
        assert (await it.post(body, "/v1/responses"))[2]["service_tier"] == "flex"
        assert (await it.post({**body, "service_tier": "auto"}, "/v1/responses"))[2][
            "service_tier"
        ] == "default"


async def test_a_completion_window_is_for_the_background():
    """A response in the background that may take hours is served by the batch host; any other is a 400."""
    body = {"model": MODEL, "input": "hello", "background_options": {"completion_window": "8h"}}
    async with served() as it:
        assert (await it.post(body, "/v1/responses"))[0] == 400
        status, _, answer = await it.post({**body, "background": True}, "/v1/responses")
        assert status == 200
        while answer["status"] in ("queued", "in_progress"):
            await trio.lowlevel.checkpoint()
            answer = (await it.get(f"/v1/responses/{answer['id']}"))[1]
        assert (answer["status"], answer["service_tier"]) == ("completed", "flex")
        assert hosts(it) == ["batch.test"]


@pytest.mark.parametrize("tier", ["auto", "default", "priority"])
async def test_other_tiers_are_the_usual_one(tier):
    """A chat that requests another tier is told that the usual one has served it."""
    async with served() as it:
        assert (await it.post({**HELLO, "service_tier": tier}))[2]["service_tier"] == "default"
        assert hosts(it) == ["one.test"]
