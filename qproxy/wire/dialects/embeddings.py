"""Requests for embeddings and their responses, in both of DashScope's dialects.

    compatible   `POST {base}/embeddings`, answer `{"data": [{"index", "embedding"}], "usage"}`
    dashscope    `POST /api/v1/services/embeddings/text-embedding/text-embedding`, answer
                 `{"output": {"embeddings": [{"text_index", "embedding"}]}, "usage"}`

Vectors are always requested as numbers: DashScope does not support base64. The order of a response is not
guaranteed, so it is sorted by index; a wrong number of vectors is an error, for one would be assigned to
another text.

Source: Model Studio's embedding pages, the dashscope SDK.
"""

from __future__ import annotations

from collections.abc import Sequence

from qproxy.wire import json_codec
from qproxy.wire.dialects import dashscope, deltas
from qproxy.wire.dialects.error_mapping import error_from_event
from qproxy.wire.dialects.target import UpstreamTarget
from qproxy.wire.embeddings import EmbeddingInput, EmbeddingOutput, extract_vectors, invalid_vectors_error
from qproxy.wire.events import JSON
from qproxy.wire.http_request import HTTPRequest

SERVICE = "/api/v1/services/embeddings/text-embedding/text-embedding"
_ACCEPT = (b"accept", b"application/json")


def openai_request(request: EmbeddingInput, target: UpstreamTarget) -> HTTPRequest:
    """Return the request for a batch in OpenAI's shape."""
    body = {**request.params, "model": target.model, "input": request.texts, "encoding_format": "float"}
    url = f"{target.base_url}/embeddings"
    return HTTPRequest("POST", url, target.with_authorization(_ACCEPT), json_codec.dumps(body))


def dashscope_request(request: EmbeddingInput, target: UpstreamTarget) -> HTTPRequest:
    """Return the request for a batch to DashScope's text-embedding service."""
    parameters = dict(request.params)
    if "dimensions" in parameters:
        parameters["dimension"] = parameters.pop("dimensions")
    body = {"model": target.model, "input": {"texts": request.texts}, "parameters": parameters}
    url = dashscope.api_root(target.base_url) + SERVICE
    return HTTPRequest("POST", url, target.with_authorization(_ACCEPT), json_codec.dumps(body))


def parse_response(body: bytes, count: int, plan: str) -> EmbeddingOutput:
    """Return the vectors of a response in either dialect. Raises UpstreamError unless there are `count`
    of them."""
    try:
        data, rows = extract_vectors(body)
    except ValueError:
        raise invalid_vectors_error("something that is not JSON") from None
    output = data.get("output") if isinstance(data, dict) else None
    items = output.get("embeddings") if isinstance(output, dict) else None
    if items is None and isinstance(data, dict):
        items = data.get("data")
    if not isinstance(items, list):
        raise error_from_event(data, None, plan=plan) or invalid_vectors_error("something else")
    return EmbeddingOutput(_order_rows(items, rows, count), _tokens(data))


def _order_rows(items: Sequence[JSON], rows: Sequence[bytes], count: int) -> list[bytes]:
    """Return the rows sorted by the items' indices, or in their order if there are none."""
    found: dict[int, bytes] = {}
    for position, item in enumerate(items):
        if not isinstance(item, dict):
            raise invalid_vectors_error("an item that is not an object")
        index = item.get("index", item.get("text_index", position))
        found[index if type(index) is int else -1] = _row(item.get("embedding"), rows)
    if len(items) != count or any(number not in found for number in range(count)):
        raise invalid_vectors_error(f"{len(items)} vectors for {count} texts, or with wrong numbers")
    return [found[number] for number in range(count)]


def _row(value: JSON, rows: Sequence[bytes]) -> bytes:
    if isinstance(value, str):  # base64, although not requested
        return json_codec.dumps(value)
    if isinstance(value, int) and 0 <= value < len(rows):
        return rows[value]
    raise invalid_vectors_error("an item without a vector")


def _tokens(data: dict[str, JSON]) -> int:
    counts = data.get("usage")
    usage = deltas.parse_usage(counts if isinstance(counts, dict) else {})
    return usage.prompt_tokens or usage.total_tokens
