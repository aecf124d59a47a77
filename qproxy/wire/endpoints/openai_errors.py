"""OpenAI's errors: in a body, in a stream's last frame, in headers.

OpenAPI `Error`: all four keys are always there, and `code` is never a number. A context overflow is described
in OpenAI's words, whose numbers clients read to shorten their conversation, with the upstream's own behind.
"""

from __future__ import annotations

import math
from typing import Any

from qproxy.wire.errors import QproxyError
from qproxy.wire.events import JSON

MAX_RETRY_AFTER = 120.0
"""Seconds: clients often ignore a longer retry-after."""
WORDS = "maximum context length"
_TEXT = {"type": "string"}
_TEXT_OR_NULL = {"type": ["string", "null"]}
ERROR_SCHEMA: JSON = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {"message": _TEXT, "type": _TEXT, "param": _TEXT_OR_NULL, "code": _TEXT_OR_NULL},
        }
    },
}


def error_object(error: QproxyError) -> dict[str, Any]:
    """Return the object that describes an error: `message`, `type`, `param` and `code`."""
    return {"message": _message(error), "type": error.type, "param": error.param, "code": error.code}


def _message(error: QproxyError) -> str:
    """Return the message, with the numbers of a context overflow unless the upstream's words have them."""
    numbers = error.overflow
    if numbers is None or numbers.limit is None or numbers.prompt is None or WORDS in error.message:
        return error.message
    if numbers.prompt_fits:
        answer = numbers.answer or 0
        parts = f"{numbers.prompt} in the messages, {answer} in the completion"
        used = f"you requested {numbers.prompt + answer} tokens ({parts})"
    else:
        used = f"your messages resulted in {numbers.prompt} tokens"
    return f"This model's {WORDS} is {numbers.limit} tokens. However, {used}. ({error.message})"


def error_body(error: QproxyError, request_id: str = "") -> dict[str, Any]:
    """Return an error's body; OpenAI sends the request id in a header only."""
    return {"error": error_object(error)}


def retry_headers(error: QproxyError) -> dict[str, str]:
    """Return the headers by which OpenAI's clients decide whether and when to retry."""
    headers = {}
    if error.retry_after is not None:
        seconds = min(error.retry_after, MAX_RETRY_AFTER)
        headers["retry-after"] = str(math.ceil(seconds))
        headers["retry-after-ms"] = str(round(seconds * 1000))
    if error.should_retry is not None:
        headers["x-should-retry"] = str(error.should_retry).lower()
    return headers
