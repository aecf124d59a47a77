"""The list of models: fetched, kept after a failure, and replaced if an upstream has none."""

import json
from contextlib import asynccontextmanager

import pytest
import trio

from qproxy.bootstrap.models import package_catalog
from qproxy.relay.model_directory import FAILURE_RETRY_SECONDS, ModelDirectory
from qproxy.wire.errors import RequestError, UpstreamError
from qproxy.wire.model_aliases import ModelAliases
from tests.accounts.factories import account
from tests.backends.fakes import FakeModelLists

CACHE_SECONDS = 300.0
LIST = (200, json.dumps({"object": "list", "data": [{"id": "qwen-a"}]}).encode())
FAILURES = {
    "503": (503, b"{}"),
    "401": (401, b"{}"),
    "429": (429, b"{}"),
    "a web page": (200, b"<html>"),
    "another shape": (200, b'{"models": []}'),
    "no connection": UpstreamError("no connection"),
    "no response": None,
}


class ListServer:
    """A transport whose upstream sends one reply to every request for its list; None is silence."""

    def __init__(self, reply):
        self.reply = reply
        self.requests = 0

    async def send(self, request):
        """Return a response with the reply, or raise it."""
        self.requests += 1
        if self.reply is None:
            await trio.sleep_forever()
        if isinstance(self.reply, Exception):
            raise self.reply
        return self._response()

    @asynccontextmanager
    async def _response(self):
        self.status, self._body = self.reply
        yield self

    async def read(self, limit):
        """Return the body."""
        assert len(self._body) <= limit
        return self._body


def directory(server, *accounts, aliases=None, shared=None):
    """Return a directory of these accounts, which share one upstream."""
    return ModelDirectory(
        accounts or (account("one", provider_family="open"),),
        server,
        cache_seconds=CACHE_SECONDS,
        aliases=ModelAliases(aliases or {}),
        catalog=package_catalog(),
        extra=(),
        shared=shared,
    )


async def ids(models):
    """Return the listed names."""
    return [model.id for model in await models.models()]


async def test_a_list_is_cached(autojump_clock):
    """A list is fetched once per cache_seconds, however often it is requested."""
    server = ListServer(LIST)
    models = directory(server)
    assert [await ids(models), await ids(models)] == [["qwen-a"]] * 2
    assert server.requests == 1
    await trio.sleep(CACHE_SECONDS + 1)
    assert (await ids(models), server.requests) == (["qwen-a"], 2)


@pytest.mark.parametrize("failure", FAILURES.values(), ids=FAILURES)
async def test_a_list_survives_failures(failure, autojump_clock):
    """After a failed fetch the last list stays, and the next attempt is seconds away."""
    server = ListServer(LIST)
    models = directory(server)
    await models.models()
    server.reply = failure
    await trio.sleep(CACHE_SECONDS + 1)
    assert [await ids(models), await ids(models)] == [["qwen-a"]] * 2
    assert server.requests == 2
    server.reply = (200, json.dumps({"data": [{"id": "qwen-b"}]}).encode())
    await trio.sleep(FAILURE_RETRY_SECONDS + 0.1)
    assert await ids(models) == ["qwen-b"]


@pytest.mark.parametrize("failure", FAILURES.values(), ids=FAILURES)
async def test_the_first_list_is_fetched_again_soon(failure, autojump_clock):
    """A server that is not up yet lists its models seconds after it is, and any model is possible before."""
    server = ListServer(failure)
    one = account("one", provider_family="open")
    models = directory(server, one)
    assert await ids(models) == []
    assert (await models.model("qwen-a")).id == "qwen-a"
    server.reply = LIST
    await trio.sleep(FAILURE_RETRY_SECONDS + 0.1)
    assert await ids(models) == ["qwen-a"]
    assert one.known_models == frozenset({"qwen-a"})
    with pytest.raises(RequestError) as caught:
        await models.model("qwen-b")
    assert (caught.value.status, caught.value.code) == (404, "model_not_found")


async def test_a_model_that_chat_serves_is_not_missing(autojump_clock):
    """A model that an upstream serves without listing it, or that the settings name, is no 404."""
    one = account("one", provider_family="open", models=("*", "named"))
    models = directory(ListServer(LIST), one)
    assert await ids(models) == ["qwen-a"]
    assert (await models.model("named")).id == "named"
    for _ in range(2):
        with pytest.raises(RequestError):
            await models.model("lora-7")
    one.record_success("lora-7")
    assert (await models.model("lora-7")).id == "lora-7"


@pytest.mark.parametrize("status", [404, 405])
async def test_an_upstream_without_a_list(status, autojump_clock):
    """404 and 405 are cached as a result: configured names are listed, and patterns decide which models
    exist."""
    server = ListServer((status, b""))
    models = directory(server, account("one", provider_family="open", models=("mine", "qwen-*")))
    assert [await ids(models), await ids(models)] == [["mine"]] * 2
    await trio.sleep(FAILURE_RETRY_SECONDS + 0.1)
    await models.models()
    assert server.requests == 1
    assert (await models.model("qwen-x")).id == "qwen-x"
    with pytest.raises(RequestError):
        await models.model("llama")


async def test_a_list_that_disappears(autojump_clock):
    """An upstream that returns 404 has no list any more, so its last one is dropped."""
    server = ListServer(LIST)
    one = account("one", provider_family="open")
    models = directory(server, one)
    assert await ids(models) == ["qwen-a"]
    server.reply = (404, b"")
    await trio.sleep(CACHE_SECONDS + 1)
    assert await ids(models) == []
    assert one.known_models is None


async def test_an_alias_is_found_without_a_list(autojump_clock):
    """A wildcard alias stays an alias while the upstream's list is unknown."""
    models = directory(ListServer((503, b"")), aliases={"gpt-*": "qwen-a"})
    assert (await models.model("gpt-4")).alias_of == "qwen-a"


async def test_one_process_asks_and_the_others_read(autojump_clock):
    """Concurrent processes send one request in all, and again one when the list has expired."""
    server, lists = ListServer(LIST), FakeModelLists()
    own = [account("one", provider_family="open", identity="id") for _ in range(3)]
    processes = [directory(server, each, shared=lists) for each in own]
    for _ in range(3):
        async with trio.open_nursery() as nursery:
            for models in processes:
                nursery.start_soon(models.models)
        assert server.requests == 1
        assert [each.lists("qwen-a") for each in own] == [True] * 3
        await trio.sleep(CACHE_SECONDS / 4)
    await trio.sleep(CACHE_SECONDS)
    assert [await ids(models) for models in processes] == [["qwen-a"]] * 3
    assert server.requests == 2


@pytest.mark.parametrize("failure", FAILURES.values(), ids=FAILURES)
async def test_a_failure_is_no_list_for_other_processes(failure, autojump_clock):
    """They keep the lists they have, and one of them tries again within seconds."""
    server, lists = ListServer(LIST), FakeModelLists()
    processes = [
        directory(server, account("one", provider_family="open", identity="id"), shared=lists)
        for _ in range(3)
    ]
    for models in processes:
        await models.models()
    server.reply = failure
    await trio.sleep(CACHE_SECONDS + 1)
    assert [await ids(models) for models in processes] == [["qwen-a"]] * 3
    assert server.requests == 2
    server.reply = (200, json.dumps({"object": "list", "data": [{"id": "qwen-b"}]}).encode())
    await trio.sleep(2 * FAILURE_RETRY_SECONDS + 1)
    assert [await ids(models) for models in processes] == [["qwen-b"]] * 3
    assert server.requests == 3


async def test_an_upstream_without_a_list_is_shared_too(autojump_clock):
    """404 means that there is no list, for every process."""
    server, lists = ListServer((404, b"")), FakeModelLists()
    own = [account("one", models=("m",), provider_family="open", identity="id") for _ in range(2)]
    assert [await ids(directory(server, each, shared=lists)) for each in own] == [["m"], ["m"]]
    assert server.requests == 1
    assert [each.known_models is None for each in own] == [True, True]
