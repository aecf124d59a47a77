"""The requests by which OpenAI-compatible servers count tokens, and the counts in their responses."""

import pytest

from qproxy.wire.dialects import tokenizers
from qproxy.wire.events import Turn

CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
TOOL = {"type": "function", "function": {"name": "f"}}
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,QUJD"}}
PROMPT = Turn(
    "",
    0,
    "m",
    [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": [{"type": "text", "text": "a"}, IMAGE, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": None, "reasoning_content": "r", "tool_calls": [CALL], "name": "x"},
        {"role": "tool", "tool_call_id": "c", "content": "ok", "cache_control": {"type": "ephemeral"}},
    ],
    tools=[TOOL],
)
MESSAGES = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "a\n\nb"},
    {"role": "assistant", "reasoning_content": "r", "tool_calls": [CALL], "content": ""},
    {"role": "tool", "tool_call_id": "c", "content": "ok"},
]
TEXTS = ["Be kind.", "a", "b", "r", "f", "{}", "ok", '{"type": "function", "function": {"name": "f"}}']


def play(form, *responses):
    """Return the requests of a form, and its result."""
    requests, sent = form(PROMPT, "m"), []
    try:
        sent.append(next(requests))
        for response in responses:
            sent.append(requests.send(response))
    except StopIteration as done:
        return sent, done.value
    raise AssertionError("it sends another request")


def test_a_chat_tokenizer():
    """vLLM gets text messages and the tools, and its count includes the template; an image is a thousand."""
    sent, count = play(tokenizers.count_chat, {"count": 40, "max_model_len": 9, "tokens": []})
    body = {"model": "m", "messages": MESSAGES, "tools": [TOOL], "add_generation_prompt": True}
    assert (sent, count) == ([("/tokenize", body)], 1040)


def test_a_template_and_a_tokenizer():
    """llama.cpp applies its template first, and its tokens are counted by qproxy."""
    sent, count = play(tokenizers.count_template, {"prompt": "<|im_start|>"}, {"tokens": [1, 2, 3]})
    assert sent == [
        ("/apply-template", {"messages": MESSAGES, "tools": [TOOL]}),
        ("/tokenize", {"content": "<|im_start|>", "parse_special": True}),
    ]
    assert count == 1003


def test_a_text_tokenizer():
    """SGLang counts each text; four tokens per message and eight per tool stand for the template."""
    sent, count = play(tokenizers.count_texts, {"count": [1] * len(TEXTS), "tokens": []})
    body = {"model": "m", "prompt": TEXTS, "add_special_tokens": False}
    assert (sent, count) == ([("/tokenize", body)], len(TEXTS) + 4 * 4 + 8 + 1000)


@pytest.mark.parametrize(
    ("form", "responses"),
    [
        (tokenizers.count_chat, [{"tokens": []}]),  # llama.cpp, which finds no content
        (tokenizers.count_chat, [{"count": True}]),
        (tokenizers.count_chat, [{"count": -1}]),
        (tokenizers.count_chat, [[1]]),
        (tokenizers.count_chat, [None]),
        (tokenizers.count_template, [None]),
        (tokenizers.count_template, [{"prompt": 7}]),
        (tokenizers.count_template, [{"prompt": "x"}, {"tokens": "x"}]),
        (tokenizers.count_texts, [{"count": 9}]),
        (tokenizers.count_texts, [{"count": [1]}]),
        (tokenizers.count_texts, [{"count": ["1"] * len(TEXTS)}]),
        (tokenizers.count_texts, ["x"]),
    ],
)
def test_other_responses(form, responses):
    """A response that is not of the form's server is no count."""
    assert play(form, *responses)[1] is None
