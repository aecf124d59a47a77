"""The completions endpoint: accepted and rejected requests, and responses, streamed and whole."""

import json

import pytest
from openai.types import Completion

from qproxy.wire.endpoints import completions
from qproxy.wire.errors import RequestError, UpstreamError
from qproxy.wire.events import (
    ChoiceFinished,
    Event,
    ReasoningDelta,
    RefusalDelta,
    StreamFailed,
    TextDelta,
    Usage,
)
from tests.openai_types import judge, stream

ASKED = {"model": "qwen3-coder-plus", "prompt": "def f():"}


def decode(**change):
    return completions.decode(ASKED | change, id="cmpl-1", created=1, default_model=None, max_messages=10_000)


@pytest.mark.parametrize(
    ("change", "prompts", "params"),
    [
        ({}, ("def f():",), {}),
        ({"prompt": ["a", "b"]}, ("a", "b"), {}),
        ({"suffix": "\nf()"}, ("<|fim_prefix|>def f():<|fim_suffix|>\nf()<|fim_middle|>",), {}),
        ({"prompt": "", "suffix": "x"}, ("<|fim_prefix|><|fim_suffix|>x<|fim_middle|>",), {}),
        ({"suffix": ""}, ("def f():",), {}),
        (
            {"suffix": None, "stop": ["\n"], "temperature": 0},
            ("def f():",),
            {"stop": ["\n"], "temperature": 0},
        ),
        ({"max_tokens": 5, "seed": 3}, ("def f():",), {"max_tokens": 5, "seed": 3}),
        ({"n": 2}, ("def f():",), {"n": 2}),
        ({"n": 1, "best_of": 1}, ("def f():",), {"n": 1}),
        ({"n": 2, "best_of": 3}, ("def f():",), {"n": 3, "logprobs": True}),
        ({"logprobs": 0}, ("def f():",), {"logprobs": True, "top_logprobs": 0}),
        ({"logprobs": 5}, ("def f():",), {"logprobs": True, "top_logprobs": 5}),
    ],
)
def test_decode(change, prompts, params):
    """Prompts are decoded, a gap becomes Qwen-coder's markers, other fields get chat's names; no limit is
    imposed."""
    turn = decode(**change)
    assert turn.completion.prompts == prompts
    assert [message["content"] for message in turn.messages] == list(prompts)
    assert turn.params == params


REFUSED = {
    "not an object": ([], None, "JSON object"),
    "no model": ({"prompt": "x"}, "model", "model"),
    "no prompt": ({"model": "m"}, "prompt", "Missing"),
    "empty": (ASKED | {"prompt": ""}, "prompt", "empty"),
    "an empty list": (ASKED | {"prompt": []}, "prompt", "empty"),
    "an empty one among others": (ASKED | {"prompt": ["a", ""]}, "prompt[1]", "empty"),
    "token ids": (ASKED | {"prompt": [1, 2]}, "prompt", "token ids"),
    "lists of token ids": (ASKED | {"prompt": [[1], [2]]}, "prompt", "token ids"),
    "a number": (ASKED | {"prompt": 7}, "prompt", "an integer"),
    "mixed": (ASKED | {"prompt": ["a", 7]}, "prompt[1]", "an integer"),
    "too many": (ASKED | {"prompt": ["a"] * 257}, "prompt", "256"),
    "suffix": (ASKED | {"suffix": 7}, "suffix", "a string"),
    "logprobs": (ASKED | {"logprobs": True}, "logprobs", "an integer"),
    "logprobs above 5": (ASKED | {"logprobs": 6}, "logprobs", "from 0 to 5"),
    "probabilities of the prompt": (ASKED | {"logprobs": 1, "echo": True}, "logprobs", "for the prompt"),
    "best_of below n": (ASKED | {"n": 3, "best_of": 2}, "best_of", "at least n"),
    "best_of in a stream": (ASKED | {"best_of": 2, "stream": True}, "best_of", "in a stream"),
    "max_tokens": (ASKED | {"max_tokens": 0}, "max_tokens", "from 1"),
    "echo": (ASKED | {"echo": "yes"}, "echo", "a boolean"),
}


@pytest.mark.parametrize(("body", "param", "expected_text"), REFUSED.values(), ids=REFUSED)
def test_rejections_name_the_field(body, param, expected_text):
    """The 400 names the field and its problem."""
    with pytest.raises(RequestError) as caught:
        completions.decode(body, id="cmpl-1", created=1, default_model=None, max_messages=10_000)
    assert (caught.value.status, caught.value.param) == (400, param)
    assert expected_text in caught.value.message


def probable(text, logprob=-0.5):
    entry = {"token": text, "logprob": logprob, "bytes": None}
    return {"content": [{**entry, "top_logprobs": [entry]}], "refusal": None}


EVENTS: list[Event] = [
    ReasoningDelta("hm"),
    TextDelta("a", 0, probable("a")),
    TextDelta("b", 1, probable("b", -0.1)),
    TextDelta("cc", 0, probable("cc")),
    ChoiceFinished("length", 0),
    RefusalDelta("no", 1),
    ChoiceFinished("tool_calls", 1),
    Usage(3, 4, 7),
]


def streamed(turn, events):
    encoder = completions.Encoder(turn)
    pieces = [piece for event in events for piece in encoder.feed(event)]
    return b"".join([*pieces, *encoder.close()]).decode()


@pytest.mark.parametrize(
    "change",
    [
        {"n": 2},
        {"n": 2, "echo": True},
        {"n": 2, "logprobs": 1},
        {"prompt": ["x", "y"], "echo": True},
        {"n": 2, "stream_options": {"include_usage": True}},
    ],
)
def test_a_stream_adds_up_to_the_whole(change):
    """Chunks and the whole response have the same texts, numbers, probabilities and reasons, in the SDK's
    types."""
    whole = judge(Completion, completions.response(decode(**change), EVENTS))
    chunks = stream(Completion, streamed(decode(**change, stream=True), EVENTS))
    assert len(whole.choices) == 2
    for choice in whole.choices:
        own = [one for chunk in chunks for one in chunk.choices if one.index == choice.index]
        assert "".join(one.text for one in own) == choice.text
        assert own[-1].finish_reason == choice.finish_reason
        if "logprobs" in change:
            offsets = [start for one in own if one.logprobs for start in one.logprobs.text_offset]
            assert offsets == choice.logprobs.text_offset
    assert [choice.finish_reason for choice in whole.choices] == ["length", "stop"]
    if "stream_options" in change:
        assert (chunks[-1].choices, chunks[-1].usage.total_tokens) == ([], 7)
        assert all(chunk.usage is None for chunk in chunks[:-1])


def test_echo():
    """With echo the prompt, without marker tokens, precedes its own choices."""
    turn = decode(prompt=["x", "y"], suffix="z", echo=True, n=2)
    answer = completions.response(turn, [TextDelta(f"-{n}", n) for n in range(4)])
    assert [choice["text"] for choice in answer["choices"]] == ["x-0", "x-1", "y-2", "y-3"]


def test_best_of():
    """best_of selects the likeliest choices for each prompt separately, numbered without gaps."""
    turn = decode(prompt=["x", "y"], best_of=2)
    scores = [-2.0, -1.0, -0.1, -0.2]
    events = [TextDelta(str(n), n, probable(str(n), score)) for n, score in enumerate(scores)]
    answer = completions.response(turn, events)
    assert [(choice["index"], choice["text"]) for choice in answer["choices"]] == [(0, "1"), (1, "2")]
    assert answer["choices"][0]["logprobs"] is None


def test_failures():
    """A failure ends a stream with one frame, and a whole response with the error."""
    failed: list[Event] = [TextDelta("a"), StreamFailed(UpstreamError("broken"))]
    text = streamed(decode(stream=True), failed)
    assert json.loads(text.split("\n\n")[-2].removeprefix("data: "))["error"]["message"] == "broken"
    assert "[DONE]" not in text
    with pytest.raises(UpstreamError, match="broken"):
        completions.response(decode(), failed)
