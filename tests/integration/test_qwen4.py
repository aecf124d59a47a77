"""Qwen4 through every API, against the emulator: reasoning that is kept over the turns of a conversation."""

import pytest

from tests.helpers import world

MODEL = "qwen4-max"
TURNS = 5


async def ask_chat(it, history, question):
    """One turn by a client that sends back what it got."""
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


@pytest.mark.parametrize("ask", [ask_chat, ask_responses, ask_messages])
async def test_thoughts_are_kept_over_five_turns(ask):
    """The ciphertext of each turn comes back on its message, unchanged, and the model reads all of them."""
    async with world() as it:
        history: list = []
        texts = [await ask(it, history, f"Question {number}?") for number in range(TURNS)]
        assert "remember" not in texts[0]
        for number in range(1, TURNS):
            assert f"I remember {number} thoughts." in texts[number]
        sent = it.emulator.requests[-1].body
        assert (sent["thinking_display"], sent["preserve_thinking"]) == ("summarized", True)


async def test_a_foreign_ciphertext_is_left_out_once_refused():
    """A ciphertext that the model refuses is left out, and the request sent again."""
    async with world() as it:
        foreign = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "gAAAA"}
        said = {"role": "assistant", "content": "x"}
        history = [{"role": "user", "content": "hi"}, foreign, said, {"role": "user", "content": "so?"}]
        body = {"model": MODEL, "input": history, "store": False}
        status, _, _ = await it.post(body, "/v1/responses")
        assert status == 200
        first, second = [seen.body["messages"][1] for seen in it.emulator.requests if seen.method == "POST"]
        assert (first["encrypted_content"], "encrypted_content" in second) == ("gAAAA", False)
