"""The request's body: its type, its coding, its size and depth, and its JSON.

The bytes themselves are received by `fast_path` or by Quart, within the same limits.
"""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import trio

from qproxy.relay.event_stream import apart
from qproxy.server import content_codings, request_context
from qproxy.server.host_policy import ReadableHeaders
from qproxy.telemetry.body_log import BodyLogger
from qproxy.telemetry.records import MAX_NAME_LENGTH
from qproxy.wire import json_codec, raw_json
from qproxy.wire.errors import RequestError
from qproxy.wire.http1 import HeaderList

JSON_TYPE = "application/json"


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestLimits:
    """The limits of one request: bytes, depth, messages, and seconds (`math.inf` for no limit)."""

    max_body_bytes: int
    max_upload_bytes: int
    """Bytes of a form with files."""
    max_json_depth: int
    max_messages: int
    client_body_timeout: float
    client_min_body_rate: int
    """Bytes per second; 0 for no limit."""
    client_request_timeout: float
    keep_alive_interval: float
    """Seconds without an event after which a stream sends its API's keep-alive."""
    max_background_responses: int
    """Of this process."""


def body_too_large(limits: RequestLimits, what: str = "request body") -> RequestError:
    message = f"The {what} is larger than {limits.max_body_bytes:,} bytes (max_body_bytes)."
    return RequestError(message, status=413, code="request_too_large")


def upload_too_large(max_bytes: int) -> RequestError:
    message = f"The upload is larger than {max_bytes:,} bytes (max_upload_bytes)."
    return RequestError(message, status=413, code="request_too_large")


class BodyDeadline:
    """The time limit of a body that keeps arriving: on silence, and by a minimum rate on the whole of it."""

    def __init__(self, limits: RequestLimits) -> None:
        self._limits = limits
        self._started_at = trio.current_time()
        self.scope = trio.CancelScope(deadline=self._started_at + limits.client_body_timeout)

    def extend(self, size: int) -> None:
        """Move the deadline, now that `size` bytes have arrived since the start."""
        timeout, rate = self._limits.client_body_timeout, self._limits.client_min_body_rate
        earned = size / rate if rate else math.inf
        self.scope.deadline = min(trio.current_time(), self._started_at + earned) + timeout


def body_timeout(limits: RequestLimits) -> RequestError:
    timeout, rate = limits.client_body_timeout, limits.client_min_body_rate
    message = (
        f"The request body paused for {timeout:g} s (client_body_timeout) or arrived at less than {rate:,} "
        "bytes per second (client_min_body_rate)."
    )
    return RequestError(message, status=408, code="request_timeout")


def websocket_not_supported() -> RequestError:
    message = "This endpoint does not support WebSocket."
    return RequestError(message, status=426, code="websocket_not_supported")


def websocket_required() -> RequestError:
    message = "This endpoint requires a WebSocket connection (RFC 6455, or RFC 8441 over HTTP/2)."
    return RequestError(message, status=426, code="websocket_required")


def read_coding(headers: ReadableHeaders, raw: HeaderList) -> str:
    """Return the coding of the body. Raises RequestError for an unsupported one and for a WebSocket
    handshake."""
    if headers.get("upgrade", "").strip().lower() == "websocket":
        raise websocket_not_supported()
    if not headers.get("content-encoding"):
        return ""
    values = (value.decode("latin-1") for name, value in raw if name.lower() == b"content-encoding")
    return content_codings.parse_coding(values)


async def _decode(data: bytes, coding: str, limits: RequestLimits) -> bytes:
    """Return the decoded body. Raises RequestError when it is too large or corrupt."""
    limit = limits.max_body_bytes
    try:
        if len(data) <= json_codec.LARGE:
            with suppress(content_codings.DecodedBodyTooLarge):
                return content_codings.decode(data, coding, min(json_codec.LARGE, limit))
        return await apart(content_codings.decode, data, coding, limit)
    except content_codings.DecodedBodyTooLarge:
        raise body_too_large(limits, "decompressed request body") from None
    except content_codings.CorruptBody as error:
        message = f"The request body cannot be decompressed (Content-Encoding: {coding}): {error}."
        raise RequestError(message, code="invalid_content_encoding") from None


def check_content_type(mimetype: str, *, from_page: bool) -> None:
    """Raise RequestError unless the body is declared as JSON.

    Programs may omit the type. Pages may not: without a preflight a page can send any type but JSON, so a
    request with an Origin header must declare it.
    """
    if not mimetype and not from_page:
        return
    if mimetype != JSON_TYPE and not mimetype.endswith("+json"):
        raise RequestError(
            f"Unsupported content type '{mimetype[:100]}': send application/json.",
            status=415,
            code="unsupported_media_type",
        )


def parse_json(data: bytes, max_depth: int) -> Any:
    """Parse a body.  Raises RequestError for invalid JSON and for more than `max_depth` nested levels."""
    message = f"The request body is nested more than {max_depth} levels deep (max_json_depth)."
    try:
        body = raw_json.parse_body(data)
    except json_codec.NestingTooDeep:
        raise RequestError(message, code="invalid_value") from None
    except ValueError as error:
        raise RequestError(f"The request body is not valid JSON: {error}.") from None
    if json_codec.exceeds_depth(body, max_depth):
        raise RequestError(message, code="invalid_value")
    return body


async def read_json(limits: RequestLimits, logger: BodyLogger | None) -> Any:
    """Read the current request's body as JSON.  Raises RequestError when it is unusable."""
    headers = request_context.headers()
    mimetype = (headers.get("content-type") or "").partition(";")[0].strip().lower()
    check_content_type(mimetype, from_page="origin" in headers)
    data = await request_context.body()
    if coding := request_context.current().coding:
        data = await _decode(data, coding, limits)
    if logger:
        logger.log_request(request_context.record(), data)
    large = len(data) > json_codec.LARGE
    depth = limits.max_json_depth
    body = await apart(parse_json, data, depth) if large else parse_json(data, depth)
    if isinstance(body, dict) and isinstance(model := body.get("model"), str):
        request_context.record().requested_model = model[:MAX_NAME_LENGTH]
    return body
