"""The vocabulary of embeddings of pictures, videos and texts: `Content`, one vector's parts, and the requests
that a model's limits make of them.

The limits of Model Studio's models are those of their data (`ModelSpec.limits`):

    parts        elements of a request's `contents`
    vectors      vectors of a request
    images       pictures of a request, each of at most `image_megabytes`
    videos       videos of a request

`ModelSpec.fusion` is how a model makes one vector of several parts. Source: Model Studio's page
multimodal-embedding-api.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, TypeAlias

from qproxy.wire.embeddings import EmbeddingInput
from qproxy.wire.errors import RequestError
from qproxy.wire.events import JSON
from qproxy.wire.models import ModelSpec

Kind: TypeAlias = Literal["text", "image", "video"]
PARTS = 20
"""Elements of a request to a model whose limit is not known."""
MEGABYTE = 1024 * 1024
_MEDIA: tuple[tuple[Kind, str], ...] = (("image", "images"), ("video", "videos"))


class Part(NamedTuple):
    """A text, or a picture or video by its URL or data URL."""

    kind: Kind
    value: str


@dataclass(frozen=True, slots=True)
class Content:
    """The parts of one vector."""

    parts: Sequence[Part]
    source: JSON
    """The same as the client wrote it, for own servers."""
    path: str
    """Its place in the request."""

    def count(self, kind: Kind) -> int:
        """Return the number of parts of a kind."""
        return sum(part.kind == kind for part in self.parts)


@dataclass(frozen=True, slots=True)
class MultimodalInput(EmbeddingInput):
    """One request for a vector of each content; `texts` are those of all contents."""

    contents: Sequence[Content] = ()
    form: Literal["one", "array", "messages"] = "array"
    """Whether `input` is one content or an array of them, or `messages` are the only content."""
    instruction: str | None = None
    """The system message of `messages`."""

    @property
    def images(self) -> int:
        """Return the number of pictures."""
        return sum(content.count("image") for content in self.contents)

    def split(self, spec: ModelSpec) -> Iterator[MultimodalInput]:
        """Yield the same request in parts within a model's limits. Raises RequestError for a content that
        exceeds them alone."""
        limits = spec.limits or {}
        batch: list[Content] = []
        for content in self.contents:
            _check_alone(content, spec)
            if batch and not _fits([*batch, content], spec, limits):
                yield replace(self, contents=batch)
                batch = []
            batch.append(content)
        yield replace(self, contents=batch)


def as_multimodal(request: EmbeddingInput) -> MultimodalInput:
    """Return a request for vectors of texts as one for vectors of contents."""
    contents = [
        Content((Part("text", text),), text, f"input[{number}]") for number, text in enumerate(request.texts)
    ]
    return MultimodalInput(
        request.model, request.texts, request.params, request.base64, request.ignored, contents
    )


def check_dimensions(request: EmbeddingInput, spec: ModelSpec) -> None:
    """Raise RequestError for a number of dimensions that the model is known not to have."""
    dimensions = request.params.get("dimensions", request.params.get("dimension"))
    known = None if "dimensions" in spec.guessed else spec.dimensions
    if dimensions is not None and known and dimensions not in known:
        options = ", ".join(map(str, known))
        message = f"The model {request.model[:200]!r} has vectors of {options} dimensions, not {dimensions}."
        raise RequestError(message, param="dimensions", code="invalid_value")


def _elements(content: Content, spec: ModelSpec) -> int:
    """Return how many elements of `contents` a content becomes."""
    return 1 if spec.fusion == "object" else len(content.parts)


def _fits(batch: Sequence[Content], spec: ModelSpec, limits: Mapping[str, int]) -> bool:
    """Return whether one request may have these contents."""
    if spec.fusion != "object" and len(batch) > 1 and any(len(content.parts) > 1 for content in batch):
        return False  # `enable_fusion` holds for the whole request
    sizes = {"parts": sum(_elements(content, spec) for content in batch), "vectors": len(batch)}
    sizes |= {limit: sum(content.count(kind) for content in batch) for kind, limit in _MEDIA}
    return all(size <= limits.get(name, PARTS if name == "parts" else size) for name, size in sizes.items())


def _check_alone(content: Content, spec: ModelSpec) -> None:
    """Raise RequestError unless the model can make a vector of the content."""
    limits = spec.limits or {}
    if len(content.parts) > 1 and spec.fusion == "no":
        _reject(content, "the model makes a vector of each part, and none of several; send each as an item.")
    if _elements(content, spec) > limits.get("parts", PARTS):
        _reject(content, f"the model makes a vector of at most {limits.get('parts', PARTS)} parts.")
    if spec.fusion == "object" and content.count("video") > 1:
        _reject(content, "the model makes a vector of at most one video.")
    for kind, limit in _MEDIA:
        if content.count(kind) > limits.get(limit, len(content.parts)):
            _reject(content, f"the model makes a vector of at most {limits[limit]} {limit}.")
        size = limits.get(f"{kind}_megabytes")
        for part in content.parts:
            if size and part.kind == kind and _data_bytes(part.value) > size * MEGABYTE:
                _reject(content, f"the model accepts a {kind} of at most {size} MB; send less.")


def _data_bytes(value: str) -> int:
    """Return the size of the data of a data URL, 0 for a link."""
    return len(value) * 3 // 4 if value.startswith("data:") else 0


def _reject(content: Content, message: str) -> None:
    raise RequestError(
        f"Invalid value for '{content.path}': {message}", param=content.path, code="invalid_value"
    )
