"""Errors about an exceeded context in each server's wording: detected, with their numbers."""

import json

import pytest

from qproxy.wire.context_overflow import ContextOverflow, parse_overflow
from qproxy.wire.dialects.error_mapping import error_from_event, error_from_response

WORDS = {
    "DashScope": ("Range of input length should be [1, 129024]", (129024, None, None)),
    "DashScope, wrapped": (
        "InternalError.Algo.InvalidParameter: Range of input length should be [1, 991808]",
        (991808, None, None),
    ),
    "DashScope, all messages": (
        "Total message token length exceed model limit (10000000 tokens).",
        (10_000_000, None, None),
    ),
    "vLLM 0.6": (
        "This model's maximum context length is 32768 tokens. However, you requested 40000 tokens (39000 "
        "in the messages, 1000 in the completion). Please reduce the length of the messages or completion.",
        (32768, 39000, 1000),
    ),
    "vLLM 0.9": (
        "'max_tokens' or 'max_completion_tokens' is too large: 4096. This model's maximum context length "
        "is 8192 tokens and your request has 5000 input tokens (4096 > 8192 - 5000).",
        (8192, 5000, 4096),
    ),
    "vLLM 0.9, the prompt alone": (
        "This model's maximum context length is 2048 tokens. However, your request has 3000 input tokens. "
        "Please reduce the length of the input messages.",
        (2048, 3000, None),
    ),
    "vLLM 0.12": (
        "You passed 33001 input tokens and requested 8 output tokens. However, the model's context length "
        "is only 32768 tokens, resulting in a maximum input length of 32760 tokens. Please reduce the "
        "length of the input prompt.",
        (32768, 33001, 8),
    ),
    "vLLM, decoder": (
        "The decoder prompt (length 3000) is longer than the maximum model length of 2048.",
        (2048, 3000, None),
    ),
    "vLLM, decoder with room for an answer": (
        "The decoder prompt (length 3000) plus the number of requested output tokens (at least 1) is longer "
        "than the maximum model length of 2048.",
        (2048, 3000, None),
    ),
    "vLLM, Responses": (
        "The engine prompt length 227861 exceeds the max_model_len 131072. Please reduce prompt.",
        (131_072, 227_861, None),
    ),
    "SGLang": (
        "The input (12345 tokens) is longer than the model's context length (8192 tokens).",
        (8192, 12345, None),
    ),
    "SGLang, with the answer": (
        "Requested token count exceeds the model's maximum context length of 8192 tokens. You requested a "
        "total of 9000 tokens: 8000 tokens from the input messages and 1000 tokens for the completion.",
        (8192, 8000, 1000),
    ),
    "SGLang, truncation": (
        "Input length (9000 tokens) exceeds the maximum allowed length (8186 tokens). Use a shorter input "
        "or enable --allow-auto-truncate.",
        (8186, 9000, None),
    ),
    "llama.cpp": (
        "request (9000 tokens) exceeds the available context size (8192 tokens), try increasing it",
        (8192, 9000, None),
    ),
    "LM Studio": (
        "Trying to keep the first 13000 tokens when context the overflows. However, the model is loaded "
        "with context length of only 4096 tokens, which is not enough.",
        (4096, 13000, None),
    ),
    "OpenAI": (
        "This model's maximum context length is 128000 tokens. However, your messages resulted in 130000 "
        "tokens.",
        (128000, 130000, None),
    ),
    "OpenAI, newer": (
        "Input tokens exceed the configured limit of 272000 tokens. Your messages resulted in 300000 tokens. "
        "context_length_exceeded",
        (272000, 300000, None),
    ),
    "only the limit": ("This model's maximum context length is 4096 tokens, sorry.", (4096, None, None)),
}


@pytest.mark.parametrize(("text", "numbers"), WORDS.values(), ids=WORDS)
def test_messages_of_servers(text, numbers):
    """The error is a context overflow, before and after the first byte, with the server's numbers."""
    body = {"error": {"message": text, "type": "invalid_request_error", "code": None}}
    errors = [
        error_from_response(400, (), json.dumps(body).encode()),
        error_from_response(400, (), text.encode()),
        error_from_event(body, 400),
    ]
    for error in errors:
        assert error is not None
        assert (error.status, error.code) == (400, "context_length_exceeded")
        assert error.overflow == ContextOverflow(*numbers)


def test_fields_of_llama_cpp():
    """llama.cpp has the numbers in fields beside its message."""
    error = {
        "code": 400,
        "message": "the request exceeds the available context size, try increasing it",
        "type": "exceed_context_size_error",
        "n_prompt_tokens": 9000,
        "n_ctx": 8192,
    }
    found = error_from_response(400, (), json.dumps({"error": error}).encode())
    assert found.code == "context_length_exceeded"
    assert found.overflow == ContextOverflow(8192, 9000)


@pytest.mark.parametrize(
    "text", ["", "no numbers here", "limit of x tokens", "9" * 100_000, "context length is " * 9999]
)
def test_a_message_without_numbers(text):
    """A message without numbers gives none, at any length."""
    assert parse_overflow(text) is None
    assert parse_overflow(text, {"n_ctx": "8192", "n_prompt_tokens": True}) is None


def test_prompt_fits():
    """A shorter output helps only if all three numbers are known and the prompt fits."""
    assert ContextOverflow(100, 90, 20).prompt_fits
    for numbers in (
        ContextOverflow(),
        ContextOverflow(100, 90),
        ContextOverflow(100, 100, 5),
        ContextOverflow(100, None, 5),
    ):
        assert not numbers.prompt_fits
