"""`POST /v1/embeddings`: OpenAI's request as `EmbeddingInput`, and the vectors as its response.

This module validates the fields and encodes the body in chunks, without batches, accounts or Qwen's field
names.

OpenAPI `CreateEmbeddingRequest`, `CreateEmbeddingResponse`. Two of the four kinds of `input` are rejected:
token ids belong to a GPT model's vocabulary and mean other words, or none, to Qwen.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NoReturn

from qproxy.wire import json_codec
from qproxy.wire.embeddings import EmbeddingInput
from qproxy.wire.endpoints import validation
from qproxy.wire.errors import RequestError
from qproxy.wire.events import JSON

MAX_TEXTS = 2048


def _check_encoding_format(value: JSON, path: str) -> JSON:
    if value != "dense":
        validation.wrong_value(path, "OpenAI's response supports dense vectors only.")
    return value


FIELDS = {
    "encoding_format": validation.one_of(("float", "base64")),
    "dimensions": validation.integer(1, 65_536),
    "user": validation.identifier,
    "text_type": validation.one_of(("query", "document")),
    "instruct": validation.string,
    "output_type": _check_encoding_format,
}
_NOT_PARAMS = frozenset(("model", "input", "encoding_format", "user"))


def decode(body: JSON) -> EmbeddingInput:
    """Return the validated request. Raises RequestError naming the invalid field."""
    body = validation.body(body)
    model = validation.require_model(body, None)  # the operator's default model is a chat model
    fields = validation.check_fields(body, FIELDS)
    if "input" not in fields:
        validation.missing("input")
    return EmbeddingInput(
        model=model,
        texts=_texts(fields["input"]),
        params={name: value for name, value in fields.items() if name not in _NOT_PARAMS},
        base64=fields.get("encoding_format") == "base64",
        ignored=("user",) if "user" in fields else (),
    )


def _texts(value: JSON) -> list[str]:
    """Return the texts of `input`, a string or an array of strings."""
    if isinstance(value, str):
        return [_text(value, "input")]
    if not isinstance(value, list):
        validation.wrong_type("input", "a string or an array of strings", value)
    if not value:
        validation.wrong_value("input", "the array is empty; send at least one text.")
    if validation.token_ids(value):
        _token_ids()
    if len(value) > MAX_TEXTS:
        validation.wrong_value(
            "input", f"expected at most {MAX_TEXTS} texts per request, but got {len(value)}."
        )
    return [_text(item, f"input[{number}]") for number, item in enumerate(value)]


def _text(value: JSON, path: str) -> str:
    if not validation.string(value, path):
        validation.wrong_value(path, "the text is empty.")
    return str(value)


def _token_ids() -> NoReturn:
    raise RequestError(
        "'input' holds token ids of a GPT model, which Qwen cannot read: send the texts themselves. "
        "(LangChain: OpenAIEmbeddings(..., check_embedding_ctx_length=False).)",
        param="input",
        code="unsupported_value",
    )


def iter_body(request: EmbeddingInput, vectors: Sequence[bytes], tokens: int) -> Iterator[bytes]:
    """Yield the response body, one chunk per vector as encoded by `embeddings.encode_vectors`."""
    opening = b'{"object":"list","data":['
    for number, vector in enumerate(vectors):
        yield b'%b{"object":"embedding","index":%d,"embedding":%b}' % (opening, number, vector)
        opening = b","
    rest = json_codec.dumps(
        {"model": request.model, "usage": {"prompt_tokens": tokens, "total_tokens": tokens}}
    )
    yield b"]," + rest[1:]


def content_length(request: EmbeddingInput, vectors: Sequence[bytes], tokens: int) -> int:
    """Return the size of the whole body in bytes without building it."""
    empty = iter_body(request, [b""] * len(vectors), tokens)
    return sum(map(len, empty)) + sum(map(len, vectors))
