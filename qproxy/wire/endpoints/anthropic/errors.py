"""Errors in Anthropic's shape: the status, the type and the words that its clients act on.

    ours                         status   type
    400, 415, 422                the same invalid_request_error
    context_length_exceeded      400      invalid_request_error, in the words below
    401                          401      authentication_error
    402                          402      billing_error
    403                          403      permission_error
    404                          404      not_found_error; of a model "model: ...", with advice
    413                          413      request_too_large
    429                          429      rate_limit_error
    503                          529      overloaded_error
    504                          504      timeout_error
    500, 502                     the same api_error

Claude Code compacts a conversation at "prompt is too long: N tokens > M maximum", and lowers max_tokens at
"input length and `max_tokens` exceed context limit: A + B > C". Whether to try again, the `retry-after` and
`x-should-retry` headers say.

Source: Anthropic's error reference; the error classes of its SDKs.
"""

from __future__ import annotations

from typing import Any

from qproxy.wire.errors import QproxyError
from qproxy.wire.events import JSON

OVERLOADED = 529
ALIAS_ADVICE = "The setting aliases can map this name to a model of this server."
TYPES = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    OVERLOADED: "overloaded_error",
}
"""By status; any other 4xx is an `invalid_request_error`, any other 5xx an `api_error`."""


ERROR_SCHEMA: JSON = {
    "type": "object",
    "required": ["type", "error", "request_id"],
    "properties": {
        "type": {"const": "error"},
        "error": {
            "type": "object",
            "required": ["type", "message"],
            "properties": {"type": {"type": "string"}, "message": {"type": "string"}},
        },
        "request_id": {"type": ["string", "null"]},
    },
}


def error_status(error: QproxyError) -> int:
    """Return the status of the response that reports an error."""
    return OVERLOADED if error.status == 503 else error.status


def error_body(error: QproxyError, request_id: str = "") -> dict[str, Any]:
    """Return Anthropic's error object; `request_id` is this server's, not the upstream's."""
    status = error_status(error)
    kind = TYPES.get(status, "api_error" if status >= 500 else "invalid_request_error")
    return {
        "type": "error",
        "error": {"type": kind, "message": _message(error)},
        "request_id": request_id or None,
    }


def _message(error: QproxyError) -> str:
    if error.code == "context_length_exceeded":
        return f"{_overflow(error)} ({error.message})"
    if error.code == "model_not_found" and not error.message.startswith("model:"):
        return f"model: {error.message} {ALIAS_ADVICE}"
    return error.message


def _overflow(error: QproxyError) -> str:
    numbers = error.overflow
    if numbers is None or numbers.limit is None:
        return "prompt is too long"
    limit = numbers.limit
    if numbers.prompt_fits:
        counts = f"{numbers.prompt} + {numbers.answer} > {limit}"
        advice = "decrease input length or `max_tokens` and try again"
        return f"input length and `max_tokens` exceed context limit: {counts}, {advice}"
    prompt = max(numbers.prompt or 0, limit + 1)
    return f"prompt is too long: {prompt} tokens > {limit} maximum"
