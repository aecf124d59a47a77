"""Models from a client's view: the list, retired ones, and key restrictions."""

import logging
from contextlib import asynccontextmanager

import pytest

from qproxy.backends.local import key_file
from qproxy.config.accounts import AccountConfig
from qproxy.wire.endpoints.models import Model
from qproxy.wire.models import ModelRow
from tests.helpers import HELLO, MODEL, accounts, world

OLD = "qwen-turbo"
ROWS = (
    ModelRow("house-old", retires="2026-01-01", successor=MODEL),
    ModelRow("house-soon", retires="2099-01-01", successor=MODEL),
)


def ask(model):
    return {**HELLO, "model": model}


@asynccontextmanager
async def keyed(tmp_path, models, **settings):
    """Yield a server, and the header of a key that may use these models."""
    path = tmp_path / "keys.json"
    _, secret = key_file.create(path, name="narrow", models=models)
    async with world(keys_file=str(path), **settings) as it:
        yield it, [(b"authorization", b"Bearer " + secret.encode())]


async def test_a_retired_model_names_its_successor():
    """A 404 names the successor, and no upstream gets a request."""
    async with world() as it:
        status, _, body = await it.post(ask(OLD))
        assert (status, body["error"]["code"]) == (404, "model_not_found")
        assert "retired on 2026-10-10. Use 'qwen-flash'." in body["error"]["message"]
        assert not [seen for seen in it.emulator.requests if seen.method == "POST"]


async def test_a_retired_model_is_replaced_by_the_setting():
    """With retired_models = "successor" the successor responds under the requested name, and a note reports
    it."""
    async with world(retired_models="successor") as it:
        status, headers, body = await it.post(ask(OLD))
        assert (status, body["model"]) == (200, OLD)
        assert it.emulator.requests[-1].body["model"] == "qwen-flash"
        assert headers["x-qproxy-notes"] == f"model qwen-flash: {OLD} was retired on 2026-10-10"


async def test_a_retired_model_that_is_still_listed_is_served():
    """A model that an account's upstream lists is requested, even if the catalog says it is retired."""
    async with world(model_rows=(ModelRow("qwen-max", retires="2026-01-01", successor=MODEL),)) as it:
        status, _, _ = await it.post(ask("qwen-max"))
        assert (status, it.emulator.requests[-1].body["model"]) == (200, "qwen-max")


async def test_open_servers_keep_their_models():
    """A self-hosted upstream gets a model by any name."""
    own = AccountConfig("own", "openai_compatible", base_url="http://127.0.0.1:1/v1")
    async with world(accounts=(own,), model_rows=ROWS) as it:
        it.server.state.relay.accounts.accounts[0].known_models = None
        assert it.server.state.relay.names.route("house-old").names == ("house-old",)


BODIES = {
    "/v1/embeddings": {"input": "x"},
    "/v1/completions": {"prompt": "x"},
    "/v1/responses": {"input": "x"},
}


@pytest.mark.parametrize(("path", "body"), BODIES.items())
async def test_every_endpoint_knows_retired_models(path, body):
    """Every endpoint returns the same 404 for a retired model."""
    async with world(model_rows=ROWS) as it:
        status, _, answer = await it.post({"model": "house-old", **body}, path)
        assert (status, "was retired on 2026-01-01" in answer["error"]["message"]) == (404, True)


KEYS = {
    "the client's name alone": ([OLD], {"retired_models": "successor"}, OLD, "qwen-flash"),
    "the successor alone": (["qwen-flash"], {"retired_models": "successor"}, OLD, OLD),
    "an alias alone": (["gpt"], {"aliases": {"gpt": MODEL}}, "gpt", MODEL),
}


@pytest.mark.parametrize(("models", "settings", "model", "refused"), KEYS.values(), ids=KEYS)
async def test_a_key_needs_every_model(tmp_path, models, settings, model, refused):
    """A key must allow every model that a request leads to: an alias's, a retired one and its successor."""
    async with keyed(tmp_path, models, **settings) as (it, key):
        status, _, body = await it.post(ask(model), headers=key)
        assert (status, body["error"]["code"]) == (403, "model_access_denied")
        assert repr(refused) in body["error"]["message"]
        names = [entry["id"] for entry in (await it.get("/v1/models", key))[1]["data"]]
        assert "gpt" not in names
    async with keyed(tmp_path / "wide", ["*"], **settings) as (it, key):
        assert (await it.post(ask(model), headers=key))[0] == 200


async def test_the_list_has_the_shutdown_date():
    """A model that will be retired has its shutdown_date in the list, beside its limits."""
    async with world(models=["house-soon"], model_rows=ROWS) as it:
        listed = {entry["id"]: entry for entry in (await it.get("/v1/models"))[1]["data"]}
        assert listed["house-soon"]["shutdown_date"] == "2099-01-01"
        assert listed["qwen4-max"]["max_output_tokens"] == 262_144
        assert "shutdown_date" not in listed["qwen4-max"]


async def test_open_weights_get_limits_from_the_operator():
    """For open weights on a self-hosted upstream only the operator sets the context length."""
    own = AccountConfig(
        "own", "openai_compatible", base_url="http://127.0.0.1:1/v1", models=["qwen3-32b", "qwen3-8b"]
    )
    async with world(accounts=(own,), model_rows=(ModelRow("qwen3-8b", context=9000),)) as it:
        listed = it.server.state.model_directory
        described = [listed._describe(Model(name), own_server=True) for name in own.models]
        assert [model.context for model in described] == [None, 9000]
        assert listed._describe(Model("qwen3-32b"), own_server=False).context == 131_072


async def test_rows_of_the_operator_are_listed():
    """A row with `listed` is in the list, with its known fields."""
    row = ModelRow("house-model", like="qwen4-max", context=77, listed=True)
    async with world(model_rows=(row,)) as it:
        status, entry = await it.get("/v1/models/house-model")
        assert (status, entry["context_length"]) == (200, 77)


async def test_the_log_warns_once(caplog):
    """A request for a model within 30 days of its retirement is logged as a warning, once."""
    async with world(accounts=accounts("one", "two"), model_rows=ROWS) as it:
        names = it.server.state.relay.names
        names._wall_clock = lambda: 4_070_000_000.0  # 2098-12-22
        with caplog.at_level(logging.WARNING, "qproxy.models"):
            for _ in range(3):
                assert names.route("house-soon").served == "house-soon"
        assert [record.message for record in caplog.records] == [
            f"model 'house-soon' will be retired on 2099-01-01: use {MODEL}."
        ]


async def test_codex_gets_a_list_that_it_can_decode():
    """A request with codex's `client_version` gets an empty `models` array beside OpenAI's `data`, and no
    other request gets one."""
    async with world() as it:
        status, body = await it.get("/v1/models?client_version=0.171.0")
        assert (status, body["object"], body.pop("models")) == (200, "list", [])
        assert body["data"]
        assert await it.get("/v1/models") == (200, body)
