"""Aliases with patterns resolve wherever a client names a model."""

import pytest

from qproxy.backends.local import key_file
from tests.helpers import MODEL, accounts, world
from tests.realtime_client import talk

ALIASES = {"gpt-*": MODEL, "gpt-realtime*": "qwen3-omni-flash-realtime", "*": "text-embedding-v4"}
HELLO = [{"role": "user", "content": "hello"}]
REQUESTS = {
    "chat": ("/v1/chat/completions", {"model": "gpt-5", "messages": HELLO}, MODEL),
    "responses": ("/v1/responses", {"model": "gpt-5", "input": "hello"}, MODEL),
    "completions": ("/v1/completions", {"model": "gpt-3.5-turbo-instruct", "prompt": "a"}, MODEL),
    "embeddings": (
        "/v1/embeddings",
        {"model": "text-embedding-3-small", "input": "a"},
        "text-embedding-v4",
    ),
}


@pytest.mark.parametrize(("path", "body", "model"), REQUESTS.values(), ids=REQUESTS.keys())
async def test_a_pattern_is_resolved(path, body, model):
    """Every endpoint sends the aliased model to the upstream and returns the client's name."""
    async with world(aliases=ALIASES) as it:
        status, _, answer = await it.post(body, path)
        assert (status, answer["model"]) == (200, body["model"])
        assert it.emulator.requests[0].body["model"] == model


async def test_a_pattern_is_resolved_for_a_session(autojump_clock):
    """A realtime session opens with the model behind the alias."""
    async with world(accounts=accounts("one"), aliases=ALIASES) as it:
        async with talk(it.app, "gpt-realtime-mini") as client:
            await client.until("session.created")
        assert it.emulator.sessions[0].model == ALIASES["gpt-realtime*"]


async def test_models():
    """The model list leaves a pattern out; a name that matches one is found, and any other name is not."""
    async with world(aliases={"gpt-*": MODEL, "fast": MODEL}) as it:
        listed = [entry["id"] for entry in (await it.get("/v1/models"))[1]["data"]]
        assert "fast" in listed
        assert not set(listed) & set(ALIASES)
        status, body = await it.get("/v1/models/gpt-5")
        assert (status, body["id"], body["owned_by"]) == (200, "gpt-5", "alias")
        assert (await it.get("/v1/models/claude"))[0] == 404


@pytest.mark.parametrize(
    "settings", [{"models": ["llama"]}, {"accounts": accounts("one", models=["llama", "*"])}]
)
async def test_the_catch_all_leaves_models_alone(settings):
    """A catch-all alias does not replace a model from the settings, an account or DashScope's own Qwen
    models."""
    async with world(aliases={"*": MODEL}, **settings) as it:
        for name in ("llama", "claude"):
            await it.post({"model": name, "messages": HELLO})
        assert [seen.body["model"] for seen in it.emulator.requests] == ["llama", MODEL]


async def test_the_catch_all_leaves_qwen_alone_at_dashscope():
    """With DashScope, a catch-all alias keeps every Qwen name, published or future."""
    async with world(aliases={"*": MODEL}) as it:
        for name in ("qwen9-max", "gpt-5"):
            await it.post({"model": name, "messages": HELLO})
        assert [seen.body["model"] for seen in it.emulator.requests] == ["qwen9-max", MODEL]
    async with world(aliases={"*": MODEL}, accounts=accounts("one", kind="openai_compatible")) as it:
        await it.post({"model": "qwen9-max", "messages": HELLO})
        assert it.emulator.requests[0].body["model"] == MODEL


async def test_a_key_may_use_names_for_its_models(tmp_path):
    """A key may use any alias of its allowed models and sees those aliases; it gets 403 for other models."""
    path = tmp_path / "keys.json"
    _, secret = key_file.create(path, name="narrow", models=(MODEL,))
    bearer = [(b"authorization", f"Bearer {secret}".encode())]
    table = {"gpt-*": MODEL, "fast": MODEL, "other-*": "qwen-max", "slow": "qwen-max"}
    async with world(aliases=table, keys_file=str(path)) as it:
        statuses = {}
        for name in ("gpt-5", "fast", "other-1", "slow", "qwen-max"):
            statuses[name] = (await it.post({"model": name, "messages": HELLO}, headers=bearer))[0]
        assert statuses == {"gpt-5": 200, "fast": 200, "other-1": 403, "slow": 403, "qwen-max": 403}
        assert [entry["id"] for entry in (await it.get("/v1/models", bearer))[1]["data"]] == [MODEL, "fast"]


async def test_names_that_fit_a_pattern_are_no_labels():
    """Names that match a pattern create no time series."""
    async with world(aliases={"gpt-*": MODEL, "fast": MODEL}, metrics_access="open") as it:
        await it.post({"model": "gpt-invented", "messages": HELLO})
        await it.post({"model": "fast", "messages": HELLO})
        async with it.client.request("GET", "/metrics") as response:
            text = (await response.read()).decode()
        assert 'model="fast"' in text
        assert "gpt-invented" not in text
