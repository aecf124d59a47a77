"""Prompt token counts: the upstream that counts, the cache of its form, and the estimate otherwise."""

import json
from typing import Any

import pytest
import trio

from qproxy.emulator import Emulator, PauseStep, ScriptedReply
from qproxy.wire.dialects.tokenizers import FORMS
from tests.helpers import HELLO, accounts, world

PATH = "/v1/messages/count_tokens"
ESTIMATE = 6
"""The estimate for `HELLO`."""


def reply(body, status=200):
    """Return a JSON response."""
    return ScriptedReply((json.dumps(body).encode(),), status=status, content_type="application/json")


SERVERS: dict[str, dict[str, Any]] = {
    "vLLM": {"/tokenize": lambda body: {"count": 21} if "messages" in body else None},
    "llama.cpp": {
        "/apply-template": lambda body: {"prompt": str(body["messages"])},
        "/tokenize": lambda body: {"tokens": [7] * 22 if body.get("content") else []},
    },
    "SGLang": {"/tokenize": lambda body: {"count": [23] * len(body["prompt"])} if "prompt" in body else None},
    "none": {},
}


class TokenizerServer(Emulator):
    """An emulator that counts tokens like a server of this name, after a delay."""

    def __init__(self, name, seconds=0.0, status=400):
        super().__init__()
        self.replies = SERVERS[name]
        self.seconds = seconds
        self.status = status

    def _reply(self, seen):
        if seen.path not in self.replies:
            return super()._reply(seen)
        body = self.replies[seen.path](seen.body)
        answer = reply(body or {}, 200 if body else self.status)
        return ScriptedReply((PauseStep(self.seconds), *answer.steps), answer.status, answer.content_type)


def server(emulator, **settings):
    """Return a qproxy in front of an OpenAI-compatible server."""
    return world(emulator=emulator, accounts=accounts("own", kind="openai_compatible"), **settings)


async def count(it, **change):
    """Return the tokens of a prompt."""
    status, _, body = await it.post({**HELLO, **change}, PATH)
    assert status == 200
    return body["input_tokens"]


@pytest.mark.parametrize(("name", "tokens"), [("vLLM", 21), ("llama.cpp", 22), ("SGLang", 23 + 4)])
async def test_a_server_with_a_tokenizer(name, tokens):
    """Its form is probed once, with a fixed prompt; then a count sends no more requests than it needs."""
    async with server(TokenizerServer(name)) as it:
        assert await count(it) == tokens
        probes = len(it.emulator.requests)
        assert await count(it) == tokens
        assert len(it.emulator.requests) - probes == len(SERVERS[name])
        assert "Hello there" in str(it.emulator.requests[-1].body)
        earlier = it.emulator.requests[: -2 * len(SERVERS[name])]
        assert "Hello there" not in str([seen.body for seen in earlier])


async def test_concurrent_counts_share_one_probe(autojump_clock):
    """Concurrent counts, as Claude Code sends them, share one probe, whatever it finds."""
    for name, tokens, requests in (("vLLM", 21, 1 + 14), ("none", ESTIMATE, len(FORMS))):
        found: list[int] = []
        async with server(TokenizerServer(name, seconds=0.1)) as it:

            async def count_once(it=it, found=found):
                found.append(await count(it))

            async with trio.open_nursery() as nursery:
                for _ in range(14):
                    nursery.start_soon(count_once)
            assert found == [tokens] * 14
            assert len(it.emulator.requests) == requests


async def test_a_server_without_a_tokenizer(autojump_clock, monkeypatch):
    """A server without a tokenizer is probed once an hour, and the tokens are estimated."""
    async with server(TokenizerServer("none")) as it:
        for _ in range(3):
            assert await count(it) == ESTIMATE
        assert len(it.emulator.requests) == len(FORMS)
        it.server.state.tokenizers._retry_at.clear()
        it.emulator.replies = SERVERS["vLLM"]
        assert await count(it) == 21


@pytest.mark.parametrize("fault", [{"seconds": 3}, {"status": 503}], ids=str)
async def test_a_failing_tokenizer(fault, autojump_clock):
    """A tokenizer that is too slow or down gets one request a minute, and the tokens are estimated."""
    emulator = TokenizerServer("vLLM", **fault)
    emulator.replies = {"/tokenize": lambda body: {"count": 21} if emulator.seconds else None}
    async with server(emulator, tokenize_timeout=2.0) as it:
        for _ in range(3):
            assert await count(it) == ESTIMATE
        assert len(emulator.requests) == 1


async def test_a_prompt_that_the_tokenizer_rejects(autojump_clock):
    """A prompt that the server rejects is estimated."""
    emulator = TokenizerServer("vLLM")
    emulator.replies = {
        "/tokenize": lambda body: {"count": 21} if "Hello there" not in str(body) else None,
    }
    async with server(emulator) as it:
        assert await count(it) == ESTIMATE


async def test_counting_can_be_disabled():
    """With tokenize_timeout 0 no server gets a request, and neither does DashScope or a server of other
    models."""
    own = accounts("own", kind="openai_compatible", models=["other"])
    for settings in (
        {"tokenize_timeout": 0.0, "accounts": accounts("own", kind="openai_compatible")},
        {"accounts": accounts("one")},
        {"accounts": (*own, *accounts("one"))},
    ):
        async with world(emulator=TokenizerServer("vLLM"), **settings) as it:
            assert await count(it) == ESTIMATE
            assert it.emulator.requests == []
