"""OpenAI's API as a record: the errors and headers of chat completions, completions, responses and
embeddings."""

from __future__ import annotations

from collections.abc import Iterable

from qproxy.wire.endpoints import models, openai_errors
from qproxy.wire.endpoints.api import Api, RateLimitStatus


def rate_limit_headers(limits: Iterable[RateLimitStatus], wall_clock: float) -> dict[str, str]:
    """Return OpenAI's `x-ratelimit-*` headers."""
    headers = {}
    for limit in limits:
        headers[f"x-ratelimit-limit-{limit.unit}"] = str(limit.limit)
        headers[f"x-ratelimit-remaining-{limit.unit}"] = str(limit.remaining)
        headers[f"x-ratelimit-reset-{limit.unit}"] = format_duration(limit.reset_seconds)
    return headers


def format_duration(seconds: float) -> str:
    """Return a duration as OpenAI writes it: 12ms, 1.5s, 6m0s."""
    if seconds < 1:
        return f"{round(seconds * 1000)}ms"
    minutes, rest = divmod(seconds, 60)
    return f"{int(minutes)}m{round(rest)}s" if minutes else f"{rest:.3g}s"


OPENAI = Api(
    name="OpenAI",
    error_body=openai_errors.error_body,
    error_schema=openai_errors.ERROR_SCHEMA,
    retry_headers=openai_errors.retry_headers,
    rate_limit_headers=rate_limit_headers,
    processing_ms_header="openai-processing-ms",
    exposed_headers=(
        "x-request-id", "openai-processing-ms", "retry-after", "retry-after-ms", "x-should-retry",
        "x-ratelimit-limit-requests", "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests",
        "x-ratelimit-limit-tokens", "x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens",
    ),
    api_key_headers=("x-api-key", "api-key"),
    model_list=models.model_list,
    model_object=models.model_object,
)  # fmt: skip
