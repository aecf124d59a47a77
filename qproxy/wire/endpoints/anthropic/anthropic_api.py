"""Anthropic's API as a record: what `/messages` and its relatives share around the answers."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime

from qproxy.wire.endpoints import openai_errors
from qproxy.wire.endpoints.anthropic import errors, models, request_headers
from qproxy.wire.endpoints.anthropic.encoder import PING
from qproxy.wire.endpoints.api import Api, RateLimitStatus


def rate_limit_headers(limits: Iterable[RateLimitStatus], wall_clock: float) -> dict[str, str]:
    """Return Anthropic's `anthropic-ratelimit-*` headers; the time of a reset is in RFC 3339."""
    headers = {}
    for limit in limits:
        prefix = f"anthropic-ratelimit-{limit.unit}"
        reset = datetime.fromtimestamp(wall_clock + limit.reset_seconds, UTC)
        headers[f"{prefix}-limit"] = str(limit.limit)
        headers[f"{prefix}-remaining"] = str(limit.remaining)
        headers[f"{prefix}-reset"] = reset.strftime("%Y-%m-%dT%H:%M:%SZ")
    return headers


ANTHROPIC = Api(
    name="Anthropic",
    error_body=errors.error_body,
    error_schema=errors.ERROR_SCHEMA,
    error_status=errors.error_status,
    retry_headers=openai_errors.retry_headers,  # the SDKs of both are generated alike
    rate_limit_headers=rate_limit_headers,
    request_id_headers=("request-id", "x-request-id"),
    exposed_headers=(
        "request-id", "x-request-id", "retry-after", "retry-after-ms", "x-should-retry",
        *(f"anthropic-ratelimit-{unit}-{name}" for unit in ("requests", "tokens") for name in ("limit",
            "remaining", "reset")),
    ),
    apply_headers=request_headers.apply_headers,
    keep_alive=PING,
    model_list=models.model_list,
    model_object=models.model_object,
    path_prefixes=("/messages",),
    marker_headers=("anthropic-version",),
)  # fmt: skip
