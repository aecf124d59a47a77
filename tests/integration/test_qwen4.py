"""Qwen4 keeps reasoning over the turns of a conversation through every API, against the emulator."""

import json

import pytest

from qproxy.backends.local.reasoning import MemoryReasoning
from qproxy.emulator.faults import json_reply
from tests.helpers import accounts, world

MODEL = "qwen4-max"
TURNS = 5


async def ask_chat(it, history, question):
    """Send one turn of a client that returns every message unchanged."""
    history.append({"role": "user", "content": question})
    body = {"model": MODEL, "messages": history, "thinking_display": "summarized"}
    status, _, answer = await it.post(body)
    assert status == 200, answer
    message = answer["choices"][0]["message"]
    history.append(message)
    return message["content"]


async def ask_responses(it, history, question):
    history.append({"role": "user", "content": question})
    body = {"model": MODEL, "input": history, "reasoning": {"summary": "auto"}, "store": False}
    status, _, answer = await it.post(body, "/v1/responses")
    assert status == 200, answer
    history.extend(answer["output"])
    return answer["output"][-1]["content"][0]["text"]


async def ask_messages(it, history, question):
    history.append({"role": "user", "content": question})
    thinking = {"type": "adaptive", "display": "summarized"}
    body = {"model": MODEL, "messages": history, "thinking": thinking, "max_tokens": 2000}
    status, _, answer = await it.post(body, "/v1/messages")
    assert status == 200, answer
    history.append({"role": "assistant", "content": answer["content"]})
    return answer["content"][-1]["text"]


@pytest.mark.parametrize("dialect", ["compatible", "dashscope"])
@pytest.mark.parametrize("ask", [ask_chat, ask_responses, ask_messages])
async def test_reasoning_is_kept_over_five_turns(ask, dialect):
    """The ciphertext of each turn returns on its message, unchanged, and the model reads all of them."""
    async with world(accounts=accounts("one", dialect=dialect)) as it:
        history: list = []
        texts = [await ask(it, history, f"Question {number}?") for number in range(TURNS)]
        assert "remember" not in texts[0]
        for number in range(1, TURNS):
            assert f"I remember {number} thoughts." in texts[number]
        sent = it.emulator.requests[-1].body
        sent = sent if dialect == "compatible" else sent["parameters"]
        assert (sent["thinking_display"], sent["preserve_thinking"]) == ("summarized", True)


async def test_a_foreign_ciphertext_is_left_out_once_rejected():
    """A ciphertext that the model rejects is left out, and the request is resent."""
    async with world() as it:
        foreign = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "gAAAA"}
        reply = {"role": "assistant", "content": "x"}
        history = [{"role": "user", "content": "hi"}, foreign, reply, {"role": "user", "content": "so?"}]
        body = {"model": MODEL, "input": history, "store": False}
        status, _, _ = await it.post(body, "/v1/responses")
        assert status == 200
        first, second = [seen.body["messages"][1] for seen in it.emulator.requests if seen.method == "POST"]
        assert (first["encrypted_content"], "encrypted_content" in second) == ("gAAAA", False)


def plain(message):
    """Return the message without the fields that a client drops."""
    return {key: message[key] for key in ("role", "content", "tool_calls") if key in message}


async def ask_plain(it, history, question, **fields):
    history.append({"role": "user", "content": question})
    body = {"model": MODEL, "messages": history, "thinking_display": "summarized", **fields}
    status, _, answer = await it.post(body)
    assert status == 200, answer
    history.append(plain(answer["choices"][0]["message"]))
    return history[-1]["content"]


async def test_reasoning_is_kept_for_clients_that_drop_it():
    """A ciphertext that the client dropped is restored on its message."""
    async with world() as it:
        history: list = []
        texts = [await ask_plain(it, history, f"Question {number}?") for number in range(TURNS)]
        for number in range(1, TURNS):
            assert f"I remember {number} thoughts." in texts[number]


@pytest.mark.parametrize("kept", [{"store": False}, None], ids=["store: false", "switched off"])
async def test_nothing_is_kept_when_storing_is_off(kept):
    """Nothing is kept for a request with `store: false`, or with a cache of 0 seconds."""
    settings = {} if kept else {"reasoning_cache_seconds": 0.0}
    async with world(**settings) as it:
        history: list = []
        texts = [await ask_plain(it, history, "Well?", **(kept or {})) for _ in range(2)]
        assert not any("remember" in text for text in texts)


async def test_a_kept_ciphertext_that_is_rejected_is_left_out():
    """After a rejection the request is resent as the client wrote it."""
    async with world() as it:
        history: list = []
        await ask_plain(it, history, "Well?")
        store = it.server.state.relay.reasoning
        assert isinstance(store, MemoryReasoning)
        entries = store._entries
        (key,) = entries
        entries[key] = entries[key][0], "changed"
        assert "remember" not in await ask_plain(it, history, "So?")
        sent = [seen.body["messages"] for seen in it.emulator.requests if seen.method == "POST"]
        first, second = [messages[1] for messages in sent if len(messages) > 1]
        assert (first["encrypted_content"], "encrypted_content" in second) == ("changed", False)


async def test_conversations_and_clients_are_apart():
    """The same response in another conversation gets no ciphertext of this one."""
    async with world() as it:
        history: list = []
        await ask_plain(it, history, "Well?")
        other = [{"role": "user", "content": "Other?"}, history[-1]]
        assert "remember" not in await ask_plain(it, other, "So?")


def short_answer(ciphertext):
    message = {"role": "assistant", "content": "OK", "encrypted_content": ciphertext}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return json_reply({"id": "x", "object": "chat.completion", "choices": [choice]})


async def test_the_same_response_to_another_question_has_its_own():
    """Two responses with the same text in one conversation each get their own ciphertext back."""
    async with world() as it:
        it.emulator.script(*map(short_answer, ("one", "two", "three")))
        history: list = []
        for question in ("Do this", "Do that", "And now?"):
            assert await ask_plain(it, history, question) == "OK"
        sent = it.emulator.requests[-1].body["messages"]
        assert [message.get("encrypted_content") for message in sent] == [None, "one", None, "two", None]


async def test_reasoning_of_streamed_calls_is_kept():
    """For a client that drops it, the ciphertext is restored on the message of a streamed call."""
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
    async with world() as it:
        history = [{"role": "user", "content": "What is the weather?"}]
        body = {"model": MODEL, "messages": history, "tools": tools, "thinking_display": "summarized"}
        _, text = await it.stream(body)
        chunks = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
        deltas = [chunk["choices"][0]["delta"] for chunk in chunks if chunk["choices"]]
        calls = [delta["tool_calls"][0] for delta in deltas if "tool_calls" in delta]
        sent = "".join(delta.get("encrypted_content", "") for delta in deltas)
        call = {"id": calls[0]["id"], "type": "function", "function": {"name": "weather", "arguments": "{}"}}
        reply = {"role": "assistant", "content": None, "tool_calls": [call]}
        result = {"role": "tool", "tool_call_id": call["id"], "content": "sunny"}
        assert (await it.post({**body, "messages": [*history, reply, result]}))[0] == 200
        assert sent
        assert it.emulator.requests[-1].body["messages"][1]["encrypted_content"] == sent


@pytest.mark.parametrize("dialect", ["compatible", "dashscope"])
async def test_the_cache_is_written_and_read(dialect):
    """OpenAI's breakpoints, options and times to live reach the model, and its usage returns complete."""
    long = {"type": "text", "text": "word " * 1100, "prompt_cache_breakpoint": {"mode": "explicit"}}
    content = [long, {"type": "text", "text": "and?"}]
    options = {"mode": "explicit", "ttl": "30m"}
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": content}],
        "prompt_cache_options": options,
    }
    async with world(accounts=accounts("one", dialect=dialect)) as it:
        found = [(await it.post(body))[2]["usage"]["prompt_tokens_details"] for _ in range(2)]
        assert [details["cached_tokens"] for details in found] == [0, 1104]
        assert found[0]["cache_creation"]["ephemeral_1h_input_tokens"] == 1104
