"""The emulator's answers end at the output limit, where thoughts count or not by the model."""

import pytest

from qproxy.emulator import chat, native

TOOL = {
    "type": "function",
    "function": {"name": "f", "parameters": {"type": "object", "properties": {"a": {}}}},
}


def body(model, question="What is a monad?", **fields):
    return {"model": model, "messages": [{"role": "user", "content": question}], **fields}


def test_qwen4_s_limit_counts_its_thoughts():
    """A small one is spent on the thoughts: no content, `length`; streamed and whole, in both forms."""
    asked = body("qwen4-max", max_tokens=5)
    whole = chat.response(asked)
    (choice,) = whole["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("", "length")
    assert len(choice["message"]["reasoning_content"].split()) == 5
    assert whole["usage"]["completion_tokens"] == 5
    *_, last = chat.chunks(asked)
    assert last["choices"][0]["finish_reason"] == "length"
    output = native.response({**asked, "stream": False}, "multimodal")["output"]
    assert output["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize(("name", "words"), [("max_tokens", 5), ("max_completion_tokens", 0)])
def test_an_older_model_s_max_tokens_counts_the_answer_alone(name, words):
    """`max_completion_tokens` counts the thoughts too."""
    found = chat.answer(body("qwen-plus", enable_thinking=True, **{name: 5}))
    assert (len(found.text.split()), found.finish_reason) == (words, "length")
    assert bool(found.thought)


def test_a_call_is_truncated_in_its_arguments():
    """With less than its name costs nothing of it is left."""
    whole = chat.answer(body("qwen-plus", tools=[TOOL])).calls[0][1]
    cut = chat.answer(body("qwen-plus", tools=[TOOL], max_tokens=7))
    assert cut.finish_reason == "length"
    assert whole.startswith(cut.calls[0][1])
    assert len(cut.calls[0][1]) == 6
    assert chat.answer(body("qwen-plus", tools=[TOOL], max_tokens=4)).calls == []


@pytest.mark.parametrize("model", ["qwen4-max", "qwen-plus"])
def test_a_limit_that_suffices_changes_nothing(model):
    """Exactly as many tokens as the answer has are enough, and one less is not."""
    plain = chat.answer(body(model))
    count = chat.usage(body(model), plain)["completion_tokens"]
    assert chat.answer(body(model, max_tokens=count)) == plain
    assert chat.answer(body(model, max_tokens=count - 1)).finish_reason == "length"
