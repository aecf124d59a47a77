"""`POST /v1/embeddings`: OpenAI's request as `EmbeddingInput`, and the vectors as its answer.

Here: the checks of the fields, and the body in pieces.  Not here: batches, accounts, Qwen's spellings.

OpenAPI `CreateEmbeddingRequest`, `CreateEmbeddingResponse`.  Of the four kinds of `input` two are refused: token ids
are numbers of a GPT model's vocabulary and mean other words, or none, to Qwen.
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
        validation.wrong_value(path, "OpenAI's answer has room for dense vectors only.")
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
    """What a request body asks for; RequestError names the field that is wrong."""
    body = validation.body(body)
    model = validation.require_model(body, None)  # the operator's default model chats
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
    """The texts of `input`: one, or an array of them."""
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
            "input", f"at most {MAX_TEXTS} texts in one request, but there are {len(value)}."
        )
    return [_text(item, f"input[{number}]") for number, item in enumerate(value)]


def _text(value: JSON, path: str) -> str:
    if not validation.string(value, path):
        validation.wrong_value(path, "the text is empty.")
    return str(value)


def _token_ids() -> NoReturn:
    raise RequestError(
        "'input' holds token ids of a GPT model, which mean nothing to Qwen: send the texts themselves. "
        "(LangChain: OpenAIEmbeddings(..., check_embedding_ctx_length=False).)",
        param="input",
        code="unsupported_value",
    )


def iter_body(request: EmbeddingInput, vectors: Sequence[bytes], tokens: int) -> Iterator[bytes]:
    """The answer's body, a piece for each vector; those are as `embeddings.encode_vectors` wrote them."""
    opening = b'{"object":"list","data":['
    for number, vector in enumerate(vectors):
        yield b'%b{"object":"embedding","index":%d,"embedding":%b}' % (opening, number, vector)
        opening = b","
    rest = json_codec.dumps(
        {"model": request.model, "usage": {"prompt_tokens": tokens, "total_tokens": tokens}}
    )
    yield b"]," + rest[1:]


def content_length(request: EmbeddingInput, vectors: Sequence[bytes], tokens: int) -> int:
    """Of the whole body in bytes, without making it."""
    empty = iter_body(request, [b""] * len(vectors), tokens)
    return sum(map(len, empty)) + sum(map(len, vectors))
