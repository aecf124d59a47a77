"""The emulator's responses end at the output limit, which counts reasoning depending on the model."""

import pytest

from qproxy.emulator import chat, native

TOOL = {
    "type": "function",
    "function": {"name": "f", "parameters": {"type": "object", "properties": {"a": {}}}},
}


def body(model, question="What is a monad?", **fields):
    return {"model": model, "messages": [{"role": "user", "content": question}], **fields}


def test_qwen4_s_limit_counts_its_reasoning():
    """A small limit is spent on reasoning: no content, `length`; streamed and whole, in both forms."""
    request = body("qwen4-max", max_tokens=5)
    whole = chat.response(request)
    (choice,) = whole["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("", "length")
    assert len(choice["message"]["reasoning_content"].split()) == 5
    assert whole["usage"]["completion_tokens"] == 5
    *_, last = chat.chunks(request)
    assert last["choices"][0]["finish_reason"] == "length"
    output = native.response({**request, "stream": False}, "multimodal")["output"]
    assert output["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize(("name", "content_words"), [("max_tokens", 5), ("max_completion_tokens", 0)])
def test_an_older_model_s_max_tokens_counts_the_content_alone(name, content_words):
    """An older model's `max_tokens` counts the content alone, `max_completion_tokens` the reasoning too."""
    found = chat.answer(body("qwen-plus", enable_thinking=True, **{name: 5}))
    assert (len(found.text.split()), found.finish_reason) == (content_words, "length")
    assert bool(found.thought)


def test_a_call_is_truncated_in_its_arguments():
    """A limit below the cost of a call's name leaves no call."""
    whole = chat.answer(body("qwen-plus", tools=[TOOL])).calls[0][1]
    truncated = chat.answer(body("qwen-plus", tools=[TOOL], max_tokens=7))
    assert truncated.finish_reason == "length"
    assert whole.startswith(truncated.calls[0][1])
    assert len(truncated.calls[0][1]) == 6
    assert chat.answer(body("qwen-plus", tools=[TOOL], max_tokens=4)).calls == []


@pytest.mark.parametrize("model", ["qwen4-max", "qwen-plus"])
def test_a_sufficient_limit_changes_nothing(model):
    """A limit of exactly the response's tokens is sufficient, and one less is not."""
    plain = chat.answer(body(model))
    count = chat.usage(body(model), plain)["completion_tokens"]
    assert chat.answer(body(model, max_tokens=count)) == plain
    assert chat.answer(body(model, max_tokens=count - 1)).finish_reason == "length"
