"""Content parts that name a stored file by `file_id`, and the parts that replace them.

Decoders raise `UnresolvedFile` for such a part, so that a request without one costs nothing. The server then
loads the files and decodes the body again, with their content: a picture as a data URI, text as text.

OpenAPI `ChatCompletionRequestMessageContentPartFile`, `InputFileContent`, `InputImageContent`.
"""

from __future__ import annotations

import copy
from base64 import b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NoReturn

from qproxy.wire.endpoints import validation
from qproxy.wire.errors import RequestError
from qproxy.wire.events import JSON

CACHE_MARKS = ("prompt_cache_breakpoint", "cache_control")
"""Where a part ends a prefix to cache: OpenAI's mark, and Qwen's older one."""
PICTURES = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF8", "image/gif"),
    (b"BM", "image/bmp"),
)
"""The first bytes of pictures; text may begin with `BM` too."""


class UnresolvedFile(RequestError):
    """A part names a file, and not its content."""

    def __init__(self, param: str) -> None:
        message = "A 'file_id' is not resolved here: send the content itself instead."
        super().__init__(message, param=param, code="unsupported_parameter")


@dataclass(frozen=True, slots=True)
class FileReference:
    """A stored file, and where the request names it."""

    id: str
    param: str
    is_image: bool
    """Whether it must be a picture."""


@dataclass(frozen=True, slots=True)
class FileContent:
    """The content of a file as a part has it."""

    text: str = ""
    image: str | None = None
    """A data URI."""


def reject_file_id(part: dict[str, JSON], path: str) -> None:
    """Raise UnresolvedFile for a part that names a file."""
    found = _reference(part, path)
    if found is not None:
        raise UnresolvedFile(found.param)


def file_references(body: JSON) -> list[FileReference]:
    """Return the files that a body names, in order. Raises RequestError."""
    found: list[FileReference] = []

    def note(part: JSON, path: str) -> JSON:
        reference = _reference(part, path)
        if reference is not None:
            found.append(reference)
        return part

    _map_parts(body, note)
    return found


def replace_files(body: JSON, contents: Mapping[str, FileContent]) -> JSON:
    """Return the body with the contents of its files, by id, instead of their ids. Raises RequestError."""

    def replace(part: JSON, path: str) -> JSON:
        reference = _reference(part, path)
        return part if reference is None else _content_part(part, reference, contents[reference.id])

    return _map_parts(body, replace)


def parse_file(filename: str, data: bytes) -> FileContent | None:
    """Return the content of a picture or a text; None for anything else."""
    kind = next((kind for magic, kind in PICTURES if data.startswith(magic)), None)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        kind = "image/webp"
    if kind != "image/bmp" and kind is not None:
        return FileContent(image=_data_uri(kind, data))
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" not in text:
        return FileContent(f'File "{filename}":\n\n{text}')
    return None if kind is None else FileContent(image=_data_uri(kind, data))


def reject_file(reference: FileReference, filename: str) -> NoReturn:
    """Raise RequestError for a file that no model can be sent."""
    pictures = "a picture (PNG, JPEG, WebP, GIF, BMP)"
    if reference.is_image:
        message = f"the file {filename!r} is not {pictures}: use an 'input_file' for text."
    else:
        message = (
            f"the file {filename!r} is neither {pictures} nor text (UTF-8): upload its text, or its "
            "pages as pictures."
        )
    validation.wrong_value(reference.param, message)


def _data_uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{b64encode(data).decode()}"


def _reference(part: JSON, path: str) -> FileReference | None:
    """Return the file that a part names instead of having its content."""
    kind = part.get("type") if isinstance(part, dict) else None
    if kind not in ("file", "input_file", "input_image"):
        return None
    if kind == "file":
        part, path = part.get("file"), f"{path}.file"
    if not isinstance(part, dict) or part.get("file_id") is None:
        return None
    if part.get("file_data") is not None or part.get("image_url") is not None:
        return None
    param = f"{path}.file_id"
    return FileReference(validation.identifier(part["file_id"], param), param, kind == "input_image")


def _content_part(part: dict[str, JSON], reference: FileReference, content: FileContent) -> JSON:
    """Return the part of a content in the spelling of the part that names it."""
    is_chat = part["type"] == "file"
    marks = {mark: part[mark] for mark in CACHE_MARKS if mark in part}
    if content.image is None:
        return {"type": "text" if is_chat else "input_text", "text": content.text, **marks}
    if is_chat:
        return {"type": "image_url", "image_url": {"url": content.image}, **marks}
    detail = part.get("detail") or "auto"
    return {"type": "input_image", "image_url": content.image, "detail": detail, **marks}


def _map_parts(body: JSON, change: Callable[[JSON, str], JSON]) -> JSON:
    """Return a body with changed content parts of its messages (chat), or of its items and their outputs."""
    changed = copy.copy(body)  # with the text of the other fields
    for field in ("messages", "input", "items"):
        if isinstance(body.get(field), list):
            changed[field] = [
                _map_item(item, f"{field}[{number}]", change) for number, item in enumerate(body[field])
            ]
    return changed


def _map_item(item: JSON, path: str, change: Callable[[JSON, str], JSON]) -> JSON:
    if not isinstance(item, dict):
        return item
    changed = {
        key: [change(part, f"{path}.{key}[{number}]") for number, part in enumerate(item[key])]
        for key in ("content", "output")
        if isinstance(item.get(key), list)
    }
    return {**item, **changed} if changed else item
