"""Requests for embeddings and their answers, in both of DashScope's dialects.

    compatible   `POST {base}/embeddings`, answer `{"data": [{"index", "embedding"}], "usage"}`
    dashscope    `POST /api/v1/services/embeddings/text-embedding/text-embedding`, answer
                 `{"output": {"embeddings": [{"text_index", "embedding"}]}, "usage"}`

Numbers are always asked for as numbers: DashScope knows no base64.  The order of an answer is not promised, so it is
sorted by its index; a vector too many or too few is an error, for it would be given to another text.

Source: Model Studio's embedding pages, the dashscope SDK.
"""

from __future__ import annotations

from collections.abc import Sequence

from qproxy.wire import json_codec as jsontext
from qproxy.wire.dialects import dashscope, deltas
from qproxy.wire.dialects.error_mapping import event_error
from qproxy.wire.dialects.target import Target
from qproxy.wire.embeddings import Texts, Vectors, not_vectors, take_out
from qproxy.wire.events import JSON
from qproxy.wire.http_request import HTTPRequest

_SERVICE = "/api/v1/services/embeddings/text-embedding/text-embedding"
_ACCEPT = (b"accept", b"application/json")


def compatible(asked: Texts, target: Target) -> HTTPRequest:
    """A batch as OpenAI's embeddings."""
    body = {**asked.params, "model": target.model, "input": asked.texts, "encoding_format": "float"}
    url = f"{target.base_url}/embeddings"
    return HTTPRequest("POST", url, target.authorised(_ACCEPT), jsontext.dumps(body))


def native(asked: Texts, target: Target) -> HTTPRequest:
    """A batch as DashScope's own text-embedding service takes it."""
    parameters = dict(asked.params)
    if "dimensions" in parameters:
        parameters["dimension"] = parameters.pop("dimensions")
    body = {"model": target.model, "input": {"texts": asked.texts}, "parameters": parameters}
    url = dashscope.root(target.base_url) + _SERVICE
    return HTTPRequest("POST", url, target.authorised(_ACCEPT), jsontext.dumps(body))


def read(body: bytes, asked: Texts, target: Target) -> Vectors:
    """The vectors in an answer of either dialect; UpstreamError when it does not hold one for each text."""
    try:
        data, rows = take_out(body)
    except ValueError:
        raise not_vectors("something that is not JSON") from None
    output = data.get("output") if isinstance(data, dict) else None
    items = output.get("embeddings") if isinstance(output, dict) else None
    if items is None and isinstance(data, dict):
        items = data.get("data")
    if not isinstance(items, list):
        raise event_error(data, None, plan=target.plan) or not_vectors("something else")
    return Vectors(_in_order(items, rows, len(asked.texts)), _tokens(data))


def _in_order(items: Sequence[JSON], rows: Sequence[bytes], count: int) -> list[bytes]:
    """The rows by the index that the items give them; where none is given they stand in order."""
    found: dict[int, bytes] = {}
    for position, item in enumerate(items):
        if not isinstance(item, dict):
            raise not_vectors("an item that is not an object")
        index = item.get("index", item.get("text_index", position))
        found[index if type(index) is int else -1] = _row(item.get("embedding"), rows)
    if len(items) != count or any(number not in found for number in range(count)):
        raise not_vectors(f"{len(items)} vectors for {count} texts, or with wrong numbers")
    return [found[number] for number in range(count)]


def _row(value: JSON, rows: Sequence[bytes]) -> bytes:
    if isinstance(value, str):  # base64, unasked
        return jsontext.dumps(value)
    if isinstance(value, int) and 0 <= value < len(rows):
        return rows[value]
    raise not_vectors("an item without a vector")


def _tokens(data: dict[str, JSON]) -> int:
    counts = data.get("usage")
    usage = deltas.usage(counts if isinstance(counts, dict) else {})
    return usage.prompt_tokens or usage.total_tokens
