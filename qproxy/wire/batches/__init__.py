"""`/v1/batches`: requests, the lines of input and output files, and the batch object.

OpenAPI `CreateBatchRequest`, `Batch`, `BatchRequestInput`, `BatchRequestOutput`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from qproxy.wire import json_codec
from qproxy.wire.endpoints import validation
from qproxy.wire.endpoints.responses.request import metadata
from qproxy.wire.errors import RequestError
from qproxy.wire.events import JSON
from qproxy.wire.files import expiry_seconds

ENDPOINTS = (
    "/v1/chat/completions", "/v1/completions", "/v1/decisions", "/v1/embeddings", "/v1/images/generations",
    "/v1/moderations", "/v1/rerank", "/v1/responses",
)  # fmt: skip
MAX_LINES = 50_000
MAX_WINDOW = 336 * 3600
UNITS = {"h": 3600, "d": 86400}
FINAL = ("completed", "failed", "expired", "cancelled")
CREATE_SCHEMA: JSON = {
    "type": "object",
    "required": ["input_file_id", "endpoint", "completion_window"],
    "properties": validation.properties(
        {
            "input_file_id": validation.string,
            "endpoint": validation.one_of(ENDPOINTS),
            "completion_window": validation.string,
            "metadata": metadata,
            "output_expires_after": validation.object_,
        }
    ),
}


@dataclass(frozen=True, slots=True)
class BatchLine:
    """One request of an input file."""

    number: int
    """From 1 on."""
    custom_id: str
    body: dict[str, JSON]


class InvalidLine(Exception):
    """A line of an input file cannot be a request."""

    def __init__(self, line: int | None, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.error = {"code": code, "line": line, "message": message, "param": param}


def decode_create(body: JSON, id: str, now: int) -> dict[str, JSON]:
    """Return the object of a new batch. Raises RequestError."""
    fields = validation.body(body)
    for name in CREATE_SCHEMA["required"]:
        if fields.get(name) is None:
            validation.missing(name)
    endpoint = validation.one_of(ENDPOINTS)(fields["endpoint"], "endpoint")
    window = validation.string(fields["completion_window"], "completion_window")
    pairs, expiry = fields.get("metadata"), fields.get("output_expires_after")
    made: dict[str, JSON] = {
        "id": id,
        "object": "batch",
        "endpoint": endpoint,
        "input_file_id": validation.string(fields["input_file_id"], "input_file_id"),
        "completion_window": window,
        "status": "validating",
        "created_at": now,
        "expires_at": now + _window_seconds(window),
        "request_counts": {"total": 0, "completed": 0, "failed": 0},
        "metadata": None if pairs is None else metadata(pairs, "metadata"),
    }
    if expiry is not None:
        limits = validation.object_(expiry, "output_expires_after")
        anchor, seconds = limits.get("anchor"), limits.get("seconds")
        made["output_expires_after"] = {
            "anchor": anchor,
            "seconds": expiry_seconds(anchor, seconds, "output_expires_after"),
        }
    return made


def _window_seconds(text: str) -> int:
    """Return the seconds of a window: whole hours or days, at most 336 hours."""
    match = re.fullmatch("([1-9][0-9]{0,2})([hd])", text)
    seconds = 0 if match is None else int(match[1]) * UNITS[match[2]]
    if not 3600 <= seconds <= MAX_WINDOW:
        validation.wrong_value("completion_window", f"expected 1h to 336h, or 1d to 14d, got {text[:40]!r}.")
    return seconds


def parse_line(number: int, data: bytes, endpoint: str) -> BatchLine:
    """Return a line as a request. Raises InvalidLine."""
    try:
        line = json_codec.loads(data)
    except (ValueError, RecursionError, RequestError):
        raise InvalidLine(number, "invalid_json_line", "The line is not valid JSON.") from None
    if not isinstance(line, dict):
        raise InvalidLine(number, "invalid_json_line", "The line is not a JSON object.")
    custom_id, body = line.get("custom_id"), line.get("body")
    if not isinstance(custom_id, str) or not custom_id:
        raise InvalidLine(number, "missing_required_parameter", "custom_id must be a text.", "custom_id")
    if line.get("method") != "POST":
        raise InvalidLine(number, "invalid_method", "method must be POST.", "method")
    if line.get("url") != endpoint:
        raise InvalidLine(number, "mismatched_endpoint", f"url must be {endpoint}, as the batch's.", "url")
    if not isinstance(body, dict):
        raise InvalidLine(number, "missing_required_parameter", "body must be an object.", "body")
    for name in ("stream", "background"):
        if body.get(name):
            raise InvalidLine(number, "unsupported_parameter", f"A batch has no {name}.", f"body.{name}")
    return BatchLine(number, custom_id, body)


def output_line(id: str, custom_id: str, response: JSON, error: Mapping[str, JSON] | None = None) -> bytes:
    """Return a line of an output or error file."""
    return json_codec.dumps({"id": id, "custom_id": custom_id, "response": response, "error": error}) + b"\n"
