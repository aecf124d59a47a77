"""`POST /rerank`, `/v1/rerank` and `/v2/rerank`: the request of any of the known shapes as a `RerankInput`.

Cohere: `documents` with `rank_fields`; Jina: texts or `{"text"}`/`{"image"}` objects, whose documents are
returned by default; vLLM: Cohere's with `instruction`; TEI: `texts`, answered by a bare array.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from qproxy.wire import json_codec
from qproxy.wire.endpoints import validation
from qproxy.wire.endpoints.request_schemas import NAME, object_schema
from qproxy.wire.events import JSON

MAX_DOCUMENTS = 10_000
COHERE_FIELDS = frozenset(("rank_fields", "max_chunks_per_doc", "max_tokens_per_doc"))
MEDIA = ("image", "video")


class Shape(enum.Enum):
    """The form of a response."""

    COHERE_V2 = "/v2"
    COMMON = "/v1"
    """Cohere's first version and Jina's at once: `meta` and `usage`."""
    TEI = "texts"


@dataclass(frozen=True, slots=True)
class Document:
    """One document: a text, or a picture or video by its URL."""

    value: str
    kind: str = "text"

    def as_object(self) -> dict[str, JSON]:
        return {self.kind: self.value}


@dataclass(frozen=True, slots=True)
class RerankInput:
    """One request, independent of its shape."""

    model: str
    query: Document
    documents: Sequence[Document]
    top_n: int | None = None
    returns_documents: bool = False
    instruction: str | None = None
    shape: Shape = Shape.COMMON
    params: Mapping[str, JSON] = field(default_factory=dict)
    """Further fields, which own servers get as they are."""

    @property
    def has_media(self) -> bool:
        """Return whether the query or a document is not a text."""
        return any(document.kind != "text" for document in (self.query, *self.documents))

    def batches(self, size: int) -> list[RerankInput]:
        """Return the same request in parts of at most `size` documents."""
        starts = range(0, len(self.documents), size)
        return [replace(self, documents=self.documents[start : start + size]) for start in starts]


FIELDS = {
    "top_n": validation.integer(1, 1_000_000),
    "return_documents": validation.boolean,
    "return_text": validation.boolean,
    "rank_fields": validation.array,
    "max_chunks_per_doc": validation.integer(1, 1_000_000),
    "max_tokens_per_doc": validation.integer(1, 1_000_000),
    "instruction": validation.string,
    "instruct": validation.string,
}
SCHEMA: JSON = object_schema(
    ["model", "query"],
    {
        "model": NAME,
        "query": {"type": ["string", "object"]},
        "documents": {"type": "array", "items": {"type": ["string", "object"]}, "minItems": 1},
        "texts": {"type": "array", "items": NAME, "minItems": 1},
    },
    validation.properties(FIELDS),
)
_OWN = frozenset(("model", "query", "documents", "texts", "instruct", *FIELDS)) - COHERE_FIELDS


def decode(body: JSON, *, v2: bool = False) -> RerankInput:
    """Return the validated request. Raises RequestError naming the invalid field."""
    body = validation.body(body)
    model = validation.require_model(body, None)
    fields = validation.check_fields(body, FIELDS)
    tei = "texts" in fields and "documents" not in fields
    name = "texts" if tei else "documents"
    for required in ("query", name):
        if required not in fields:
            validation.missing(required)
    documents = _documents(fields[name], name, fields.get("rank_fields"))
    jina = not v2 and not COHERE_FIELDS & fields.keys()
    returned = fields.get("return_text", False) if tei else fields.get("return_documents", jina)
    return RerankInput(
        model=model,
        query=_document(fields["query"], "query", None),
        documents=documents,
        top_n=fields.get("top_n"),
        returns_documents=bool(returned),
        instruction=fields.get("instruction", fields.get("instruct")),
        shape=Shape.TEI if tei else Shape.COHERE_V2 if v2 else Shape.COMMON,
        params={field: value for field, value in fields.items() if field not in _OWN},
    )


def _documents(value: JSON, path: str, rank_fields: JSON) -> list[Document]:
    items = validation.array(value, path)
    if not items:
        validation.wrong_value(path, "the array is empty; send at least one document.")
    if len(items) > MAX_DOCUMENTS:
        validation.wrong_value(path, f"expected at most {MAX_DOCUMENTS:,} documents, but got {len(items):,}.")
    return [_document(item, f"{path}[{number}]", rank_fields) for number, item in enumerate(items)]


def _document(value: JSON, path: str, rank_fields: JSON) -> Document:
    if isinstance(value, str):
        if not value:
            validation.wrong_value(path, "the text is empty.")
        return Document(value)
    if not isinstance(value, dict):
        validation.wrong_type(path, "a string or an object", value)
    if rank_fields:
        names = [str(name) for name in rank_fields]
        return Document("\n".join(f"{name}: {_as_text(value[name])}" for name in names if name in value))
    for kind in ("text", *MEDIA):
        if kind in value:
            return Document(validation.string(value[kind], f"{path}.{kind}"), kind)
    return validation.wrong_value(path, "expected a string, or an object with text, image or video.")


def _as_text(value: JSON) -> str:
    return value if isinstance(value, str) else json_codec.dumps(value).decode()
