"""Token counts by the tokenizer of an own server, which knows the model's vocabulary and chat template.

    form        server      requests
    chat        vLLM        /tokenize {messages, tools} -> {count}
    template    llama.cpp   /apply-template {messages, tools} -> {prompt}; /tokenize {content} -> {tokens}
    text        SGLang      /tokenize {prompt: [text, …]} -> {count: [n, …]}; the template is estimated

A form is a generator of requests, to which each response's JSON is sent; it returns the count, or None for a
response that is not of its server. Images are not sent: they are counted as elsewhere (`TOKENS_PER_IMAGE`).

Sources: vLLM's `TokenizeChatRequest`, llama.cpp's server README, SGLang's `TokenizeRequest`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TypeAlias

from qproxy.wire import json_codec
from qproxy.wire.events import JSON, Turn
from qproxy.wire.token_estimate import TOKENS_PER_MESSAGE, TOKENS_PER_TOOL, message_texts
from qproxy.wire.token_ratios import TOKENS_PER_IMAGE

TokenizerRequest: TypeAlias = tuple[str, JSON]
"""A path below the server's root, and the body to post."""
TokenizerRequests: TypeAlias = Generator[TokenizerRequest, JSON, int | None]
TokenizerForm: TypeAlias = Callable[[Turn, str], TokenizerRequests]
KEPT = ("role", "reasoning_content", "tool_calls", "tool_call_id")
"""Fields of a message that chat templates read, beside its content."""


def count_chat(turn: Turn, model: str) -> TokenizerRequests:
    """Have vLLM apply the template and count."""
    response = yield "/tokenize", {"model": model, **_prompt(turn), "add_generation_prompt": True}
    return _with_images(turn, _count(_field(response, "count")))


def count_template(turn: Turn, model: str) -> TokenizerRequests:
    """Have llama.cpp apply the template, then tokenize the text that it makes."""
    prompt = _field((yield "/apply-template", _prompt(turn)), "prompt")
    if not isinstance(prompt, str):
        return None
    tokens = _field((yield "/tokenize", {"content": prompt, "parse_special": True}), "tokens")
    return _with_images(turn, len(tokens) if isinstance(tokens, list) else None)


def count_texts(turn: Turn, model: str) -> TokenizerRequests:
    """Have SGLang count each text, and estimate the template."""
    texts = [text for message in turn.messages for text in message_texts(message) if text]
    texts += [json_codec.dumps_spaced(tool) for tool in turn.tools]
    response = yield "/tokenize", {"model": model, "prompt": texts, "add_special_tokens": False}
    counts = _field(response, "count")
    if not isinstance(counts, list) or len(counts) != len(texts):
        return None
    numbers = [_count(count) for count in counts]
    if None in numbers:
        return None
    around = TOKENS_PER_MESSAGE * len(turn.messages) + TOKENS_PER_TOOL * len(turn.tools)
    return _with_images(turn, around + sum(number or 0 for number in numbers))


FORMS: tuple[TokenizerForm, ...] = (count_chat, count_template, count_texts)
"""In the order in which an unknown server is probed."""


def _prompt(turn: Turn) -> dict[str, JSON]:
    """Return the messages, as text, and the tools."""
    messages = [
        {**{name: message[name] for name in KEPT if name in message}, "content": _text(message)}
        for message in turn.messages
    ]
    return {"messages": messages, "tools": list(turn.tools)} if turn.tools else {"messages": messages}


def _text(message: JSON) -> str:
    content = {"content": message.get("content")}
    return "\n\n".join(text for text in message_texts(content) if text is not None)


def _with_images(turn: Turn, count: int | None) -> int | None:
    images = sum(text is None for message in turn.messages for text in message_texts(message))
    return None if count is None else count + images * TOKENS_PER_IMAGE


def _field(response: JSON, name: str) -> JSON:
    return response.get(name) if isinstance(response, dict) else None


def _count(value: JSON) -> int | None:
    return value if type(value) is int and value >= 0 else None
