"""OpenAI's response with pictures, whole (`ImagesResponse`) or as the event of a stream."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass, field

from qproxy.wire.events import JSON
from qproxy.wire.images.request import ImageInput

NO_TOKENS: JSON = {
    "input_tokens": 0,
    "input_tokens_details": {"image_tokens": 0, "text_tokens": 0},
    "output_tokens": 0,
    "total_tokens": 0,
}
"""The usage of an event, which must have one: no model counts tokens."""


@dataclass(frozen=True, slots=True)
class MadeImages:
    """The pictures of one request."""

    links: Sequence[str]
    files: Sequence[bytes] = field(default=(), repr=False)
    """The pictures themselves, if the client wants them."""
    size: tuple[int, int] | None = None


def response(request: ImageInput, made: MadeImages, created: int) -> dict[str, JSON]:
    """Return the whole response."""
    data: list[JSON] = [{"b64_json": _encode(file)} for file in made.files]
    body: dict[str, JSON] = {
        "created": created,
        "data": data or [{"url": link} for link in made.links],
        "background": "opaque",
        "output_format": "png",
    }
    if made.size is not None:
        body["size"] = _size(made)
    return body


def event(request: ImageInput, made: MadeImages, number: int, created: int) -> dict[str, JSON]:
    """Return the event of one finished picture."""
    quality = {"standard": "medium", "hd": "high"}.get(request.quality, request.quality)
    return {
        "type": "image_edit.completed" if request.images else "image_generation.completed",
        "b64_json": _encode(made.files[number]),
        "background": "opaque",
        "created_at": created,
        "output_format": "png",
        "quality": quality,
        "size": _size(made),
        "usage": NO_TOKENS,
    }


def _encode(file: bytes) -> str:
    return b64encode(file).decode()


def _size(made: MadeImages) -> str:
    return "auto" if made.size is None else f"{made.size[0]}x{made.size[1]}"
