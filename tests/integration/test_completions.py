"""Completions work end to end: both ways to send a prompt, several prompts, failures, disconnects."""

import json

import pytest
import trio
import trio.testing
from openai.types import Completion

from qproxy.emulator.faults import HANG, ScriptedReply, json_reply
from tests.helpers import accounts, h1, world
from tests.openai_types import judge, refusal, stream

PATH = "/v1/completions"
CODER = {"model": "qwen3-coder-plus", "prompt": "def f():\n"}
CHAT = {"model": "qwen3.7-plus", "prompt": "Once upon a time"}
OWN = accounts("one", completions=["*coder*"])


async def stream_chunks(it, body):
    """Return the validated chunks of a stream."""
    raw = json.dumps({**body, "stream": True}).encode()
    async with it.client.request(
        "POST", PATH, headers=[(b"content-type", b"application/json")], body=raw
    ) as received:
        assert received.status == 200
        return stream(Completion, (await received.read()).decode())


def texts(chunks):
    """Return the text of the chunks by choice."""
    found: dict[int, str] = {}
    for chunk in chunks:
        for choice in chunk.choices:
            found[choice.index] = found.get(choice.index, "") + choice.text
    return found


async def test_a_chat_model_gets_a_user_message():
    """Without a completions endpoint the prompt is the one user message, without thinking and without a
    limit."""
    async with world() as it:
        status, _, body = await it.post(CHAT, PATH)
        assert status == 200
        answer = judge(Completion, body)
        assert answer.choices[0].text.endswith("You said: Once upon a time")
        (seen,) = it.emulator.requests
        assert seen.path.endswith("/chat/completions")
        assert seen.body["messages"] == [{"role": "user", "content": "Once upon a time"}]
        assert seen.body["enable_thinking"] is False
        assert "max_tokens" not in seen.body
        assert texts(await stream_chunks(it, CHAT)) == {0: answer.choices[0].text}


async def test_requested_thinking_stays():
    """Requested thinking reaches the model; the response omits the reasoning."""
    async with world() as it:
        _, _, body = await it.post({**CHAT, "enable_thinking": True}, PATH)
        assert it.emulator.requests[0].body["enable_thinking"] is True
        assert "The user says" not in judge(Completion, body).choices[0].text


@pytest.mark.parametrize("kind", ["openai_compatible", "key"])
async def test_a_completions_endpoint_gets_the_prompt(kind):
    """The upstream's endpoint gets Qwen-coder's fill-in-the-middle tokens and the older form of logprobs."""
    own = accounts("one", kind=kind) if kind == "openai_compatible" else OWN
    async with world(accounts=own) as it:
        request = {**CODER, "suffix": "\nf()", "logprobs": 1, "n": 2}
        status, _, body = await it.post(request, PATH)
        assert status == 200
        answer = judge(Completion, body)
        (seen,) = it.emulator.requests
        assert seen.path.endswith("/v1/completions")
        assert seen.body["prompt"] == "<|fim_prefix|>def f():\n<|fim_suffix|>\nf()<|fim_middle|>"
        assert seen.body["logprobs"] == 1
        assert not {"suffix", "messages", "top_logprobs"} & set(seen.body)
        assert [choice.text for choice in answer.choices] == ["    return 9 + 4"] * 2
        chunks = await stream_chunks(it, request)
        assert texts(chunks) == {0: "    return 9 + 4", 1: "    return 9 + 4"}
        for choice in answer.choices:
            own_probabilities = [
                c.logprobs for chunk in chunks for c in chunk.choices if c.index == choice.index
            ]
            tokens = [token for one in own_probabilities if one for token in one.tokens]
            assert tokens == choice.logprobs.tokens
            assert "".join(tokens) == choice.text


@pytest.mark.parametrize("own", [OWN, accounts("one")], ids=["completed", "chatted"])
async def test_several_prompts_share_one_response(own):
    """Choices of several prompts are numbered in order and tokens summed; streamed and whole agree."""
    prompts = ["one", "two two", "three"]
    async with world(accounts=own) as it:
        request = {**CODER, "prompt": prompts, "echo": True, "stop": ["nothing"]}
        answer = judge(Completion, (await it.post(request, PATH))[2])
        assert [choice.index for choice in answer.choices] == [0, 1, 2]
        assert all(c.text.startswith(p) for c, p in zip(answer.choices, prompts, strict=True))
        chunks = await stream_chunks(it, {**request, "stream_options": {"include_usage": True}})
        assert texts(chunks) == {choice.index: choice.text for choice in answer.choices}
        single = [(await it.post({**request, "prompt": prompt}, PATH))[2]["usage"] for prompt in prompts]
        for usage in (answer.usage, chunks[-1].usage):
            assert usage.prompt_tokens == sum(one["prompt_tokens"] for one in single)
            assert usage.total_tokens == sum(one["total_tokens"] for one in single)
        assert it.sound()


BROKEN = json_reply({"error": {"message": "too dear", "code": "Arrearage"}}, 400)
FINE = ScriptedReply(
    (b'data: {"choices":[{"index":0,"text":"x","finish_reason":"stop"}]}\n\ndata: [DONE]\n\n',)
)


async def test_a_failure_among_several_prompts(autojump_clock):
    """A failure among several prompts is the error of a whole response, or the last frame of a started
    stream."""
    request = {**CODER, "prompt": ["one", "two"]}
    async with world(accounts=OWN) as it:
        it.emulator.script(FINE, BROKEN)
        status, headers, body = await it.post(request, PATH)
        assert (status, headers["x-should-retry"]) == (429, "false")
        refusal(body)
        it.server.state.relay.accounts.accounts[0].record_success()
        it.emulator.script(FINE, BROKEN)
        raw = json.dumps({**request, "stream": True}).encode()
        fields = [(b"content-type", b"application/json")]
        async with it.client.request("POST", PATH, headers=fields, body=raw) as received:
            text = (await received.read()).decode()
        assert "[DONE]" not in text
        refusal(json.loads(text.rstrip().rpartition("data: ")[2]))
        assert it.sound()


@pytest.mark.parametrize("whole", [True, False])
async def test_a_disconnect_frees_every_prompt(whole, autojump_clock):
    """A disconnect releases everything that the prompts hold within 100 ms."""
    async with world(accounts=OWN) as it, h1(it.app) as client:
        it.emulator.script(*([ScriptedReply((HANG,))] * 2 if whole else [FINE, ScriptedReply((HANG,))]))
        body = json.dumps({**CODER, "prompt": ["one", "two"], "stream": not whole}).encode()
        await client.send("POST", PATH, body, [("content-type", "application/json")])
        await trio.testing.wait_all_tasks_blocked()
        if not whole:
            assert (await client.event()).status_code == 200
            await trio.testing.wait_all_tasks_blocked()
        assert len(it.emulator.requests) == 2
        with trio.fail_after(0.1):
            await client.aclose()
            await it.emulator.requests[-1].disconnected.wait()
            await trio.testing.wait_all_tasks_blocked()
        assert it.sound()


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({**CHAT, "prompt": [1, 2]}, 400, "prompt"),
        ({"prompt": "x"}, 400, "model"),
        ({**CHAT, "n": 9}, 400, "n"),
    ],
)
async def test_rejections(body, status, param):
    """Rejections have OpenAI's shape and name the field."""
    async with world() as it:
        received, _, answer = await it.post(body, PATH)
        assert (received, refusal(answer).param) == (status, param)
