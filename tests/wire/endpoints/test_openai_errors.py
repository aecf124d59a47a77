"""OpenAI's error object: the numbers of a context overflow in OpenAI's wording, whatever the upstream's
is."""

import pytest

from qproxy.wire.context_overflow import ContextOverflow
from qproxy.wire.endpoints import openai_errors
from qproxy.wire.errors import UpstreamError

DASHSCOPE = "Range of input length should be [1, 129024]"
VLLM = "This model's maximum context length is 8192 tokens. However, your request has 9000 input tokens."
SAID = "This model's maximum context length is 8192 tokens. However, "
OVERFLOWS = {
    "a prompt": (
        DASHSCOPE,
        ContextOverflow(129024, 130000),
        "This model's maximum context length is 129024 tokens. However, your messages resulted in 130000 "
        f"tokens. ({DASHSCOPE})",
    ),
    "an answer": (
        "too long",
        ContextOverflow(8192, 5000, 4000),
        f"{SAID}you requested 9000 tokens (5000 in the messages, 4000 in the completion). (too long)",
    ),
    "a prompt and an answer": (
        "too long",
        ContextOverflow(8192, 9000, 4000),
        f"{SAID}your messages resulted in 9000 tokens. (too long)",
    ),
    "OpenAI's words": (VLLM, ContextOverflow(8192, 9000), VLLM),
    "an unknown limit": ("too long", ContextOverflow(None, 9000), "too long"),
    "an unknown prompt": ("too long", ContextOverflow(8192), "too long"),
    "no overflow": ("broken", None, "broken"),
}


@pytest.mark.parametrize(("upstream_message", "numbers", "message"), OVERFLOWS.values(), ids=OVERFLOWS)
def test_context_overflow(upstream_message, numbers, message):
    """The numbers are added to the message of an upstream that does not state them as OpenAI does."""
    error = UpstreamError(upstream_message, status=400, code="context_length_exceeded")
    error.overflow = numbers
    assert openai_errors.error_object(error)["message"] == message
