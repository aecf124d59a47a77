"""Content parts of the Responses API's messages and tool outputs.

`read` makes a content canonical: always a list, `input_text` for input and `output_text` for the model's
text. `chat` returns the same as chat's content: a string if there is only text, otherwise chat's own parts.

Files and images by `file_id` are resolved by the server (`file_parts`); here they are rejected.

OpenAPI `InputContent`, `OutputTextContent`, `RefusalContent`.
"""

from __future__ import annotations

from collections.abc import Sequence

from qproxy.wire import json_codec
from qproxy.wire.endpoints import file_parts, validation
from qproxy.wire.endpoints.file_parts import CACHE_MARKS
from qproxy.wire.errors import RequestError
from qproxy.wire.events import JSON

TEXTS = ("input_text", "output_text", "text")
KINDS = ("input_text", "input_image", "input_file", "input_audio")
OUTPUT_KINDS = ("output_text", "refusal")
"""Part types of the model's messages."""


def parse_content(value: JSON, role: str, path: str) -> list[JSON]:
    """Return a message's content as canonical parts. Raises RequestError naming the invalid part."""
    if isinstance(value, str):
        return [plain_text(value, role)]
    if value is None:
        validation.missing(path)
    if not isinstance(value, list):
        validation.wrong_type(path, "a string or an array of content parts", value)
    return [_part(part, role, f"{path}[{number}]") for number, part in enumerate(value)]


def plain_text(value: str, role: str) -> JSON:
    """Return a text part with the type of its role."""
    if role == "assistant":
        return {"type": "output_text", "text": value, "annotations": [], "logprobs": []}
    return {"type": "input_text", "text": value}


def parse_tool_output(value: JSON, path: str) -> JSON:
    """Return a tool's output as a string or canonical parts; another JSON value as its text."""
    if value is None:
        validation.missing(path)
    if isinstance(value, list) and all(isinstance(part, dict) and "type" in part for part in value):
        return parse_content(value, "tool", path)
    return value if isinstance(value, str) else json_codec.dumps(value).decode()


def _part(value: JSON, role: str, path: str) -> JSON:
    if isinstance(value, str):  # a list of strings is a common mistake with one meaning
        return plain_text(value, role)
    part = validation.object_(value, path)
    marks = {mark: part[mark] for mark in CACHE_MARKS if part.get(mark) is not None}
    return {**_unmarked(part, role, path), **marks}


def _unmarked(part: dict[str, JSON], role: str, path: str) -> JSON:
    """Return a canonical part without the marks of a context cache."""
    kind = part.get("type")
    if kind is None:
        validation.missing(f"{path}.type")
    if kind in TEXTS:
        return plain_text(_output_text(part, "text", path), role)
    validation.one_of(OUTPUT_KINDS if role == "assistant" else KINDS)(kind, f"{path}.type")
    if kind == "refusal":
        return {"type": "refusal", "refusal": _output_text(part, "refusal", path)}
    if kind == "input_image":
        return _image(part, path)
    if kind == "input_file":
        return _file(part, path)
    validation.string(validation.object_(part.get(kind), f"{path}.{kind}").get("data"), f"{path}.{kind}.data")
    return {"type": kind, kind: part[kind]}


def _output_text(part: dict[str, JSON], key: str, path: str) -> str:
    if part.get(key) is None:
        validation.missing(f"{path}.{key}")
    return validation.string(part[key], f"{path}.{key}")


def _image(part: dict[str, JSON], path: str) -> JSON:
    url = part.get("image_url")
    if url is None:
        file_parts.reject_file_id(part, path)
        validation.missing(f"{path}.image_url")
    if isinstance(url, dict):  # chat's spelling
        url = url.get("url")
    return {
        "type": "input_image",
        "image_url": validation.string(url, f"{path}.image_url"),
        "detail": part.get("detail") or "auto",
    }


def _file(part: dict[str, JSON], path: str) -> JSON:
    if part.get("file_data") is None:
        file_parts.reject_file_id(part, path)
        if part.get("file_url") is not None:
            message = "Files are not fetched here: send the file's content in 'file_data'."
            raise RequestError(message, param=f"{path}.file_url", code="unsupported_parameter")
        validation.missing(f"{path}.file_data")
    file = {"type": "input_file", "file_data": validation.string(part["file_data"], f"{path}.file_data")}
    if part.get("filename") is not None:
        file["filename"] = validation.string(part["filename"], f"{path}.filename")
    return file


def to_chat_content(parts: Sequence[JSON], role: str) -> JSON:
    """Return canonical parts as chat's content: a string for a single text, otherwise a list."""
    texts = [part.get("text", part.get("refusal")) for part in parts]
    marked = any(mark in part for part in parts for mark in CACHE_MARKS)
    if not marked and all(isinstance(value, str) for value in texts) and (len(texts) <= 1 or role != "user"):
        return ("" if role == "assistant" else "\n\n").join(texts)
    return [_to_chat_part(part) for part in parts]


def _to_chat_part(part: JSON) -> JSON:
    marks = {mark: part[mark] for mark in CACHE_MARKS if mark in part}
    if marks:
        return {**_to_chat_part({key: part[key] for key in part if key not in marks}), **marks}
    kind = part["type"]
    if kind == "input_image":
        url = {"url": part["image_url"]}
        detail = part.get("detail", "auto")
        return {"type": "image_url", "image_url": url if detail == "auto" else {**url, "detail": detail}}
    if kind == "input_file":
        return {"type": "file", "file": {key: value for key, value in part.items() if key != "type"}}
    if kind == "input_audio":
        return part
    return {"type": "text", "text": part.get("text", part.get("refusal", ""))}
