"""`POST /v1/embeddings` with pictures and videos, which OpenAI's request does not have, as `MultimodalInput`.

    Jina    `input` of `{"text"}`, `{"image"}` and `{"video"}`
    vLLM    `messages`, or parts as those of a chat, `{"type": "image_url", "image_url": {"url"}}`

One item is one vector; an array of parts, `{"content": [...]}`, an object of several keys, and `messages`
are one vector of all their parts. Pictures may be URLs, data URLs, or bare base64 as Jina's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import get_args

from qproxy.wire.endpoints import validation
from qproxy.wire.endpoints.embeddings import FIELDS, MAX_TEXTS
from qproxy.wire.events import JSON
from qproxy.wire.multimodal_embeddings import Content, Kind, MultimodalInput, Part

_OWN = frozenset(("model", "input", "messages", "encoding_format"))
_KINDS: tuple[Kind, ...] = get_args(Kind)
_BASE64 = {"iVBORw0KGgo": "png", "/9j/": "jpeg", "R0lGOD": "gif", "UklGR": "webp", "Qk": "bmp"}
"""Beginnings of pictures in base64."""
_URLS = ("http://", "https://", "oss://", "data:")


def has_parts(body: JSON) -> bool:
    """Return whether a request has parts, and not texts alone."""
    if not isinstance(body, dict):
        return False
    value = body.get("input")
    if isinstance(value, list):
        if dict in (kinds := set(map(type, value))):
            return True
        return list in kinds and any(isinstance(item, list) and dict in map(type, item) for item in value)
    return isinstance(value, dict) or (value is None and body.get("messages") is not None)


def decode(body: JSON) -> MultimodalInput:
    """Return the validated request. Raises RequestError naming the invalid field."""
    body = validation.body(body)
    model = validation.require_model(body, None)
    fields = validation.check_fields(body, FIELDS)
    if "input" in fields and "messages" in fields:
        validation.wrong_value("messages", "send 'messages' or 'input', not both.")
    instruction = None
    if "messages" in fields:
        contents, instruction = _messages(validation.array(fields["messages"], "messages"))
    else:
        contents = _contents(fields["input"])
    is_one = isinstance(fields.get("input"), dict)
    return MultimodalInput(
        model=model,
        texts=[part.value for content in contents for part in content.parts if part.kind == "text"],
        params={name: value for name, value in fields.items() if name not in _OWN},
        base64=fields.get("encoding_format") == "base64",
        contents=contents,
        form="messages" if "messages" in fields else "one" if is_one else "array",
        instruction=instruction,
    )


def _contents(value: JSON) -> list[Content]:
    if isinstance(value, dict):
        return [_content(value, "input")]
    if len(value) > MAX_TEXTS:
        validation.wrong_value("input", f"expected at most {MAX_TEXTS} items, but got {len(value)}.")
    return [_content(item, f"input[{number}]") for number, item in enumerate(value)]


def _content(value: JSON, path: str) -> Content:
    parts = list(_parts(value, path))
    if not parts:
        validation.wrong_value(path, "it is empty; send at least one part.")
    return Content(parts, value, path)


def _messages(messages: list[JSON]) -> tuple[list[Content], str | None]:
    """Return the only content, all parts of all messages, and the text of system messages."""
    parts: list[Part] = []
    system: list[str] = []
    for number, item in enumerate(messages):
        path = f"messages[{number}]"
        message = validation.object_(item, path)
        found = list(_parts(message.get("content"), f"{path}.content"))
        if message.get("role") in ("system", "developer"):
            system += [part.value for part in found if part.kind == "text"]
        else:
            parts += found
    if not parts:
        validation.wrong_value("messages", "no message has a part; send at least one.")
    return [Content(parts, messages, "messages")], "\n".join(system) or None


def _parts(value: JSON, path: str) -> Iterator[Part]:
    """Yield the parts of a text, a part, or an array of them; empty texts are none."""
    if isinstance(value, str):
        if value:
            yield Part("text", value)
    elif isinstance(value, list):
        for number, item in enumerate(value):
            inner = f"{path}[{number}]"
            yield from _object_parts(validation.object_(item, inner), inner)
    elif isinstance(value, dict):
        if "content" in value:
            yield from _parts(value["content"], f"{path}.content")
        else:
            yield from _object_parts(value, path)
    else:
        validation.wrong_type(path, "a string, an object or an array of parts", value)


def _object_parts(value: Mapping[str, JSON], path: str) -> Iterator[Part]:
    """Yield the parts of an object: one of each of its keys, of Jina's names or of a chat's."""
    known = False
    for kind in _KINDS:
        for name in (kind, f"{kind}_url"):
            if name in value:
                known = True
                text = _text(value[name], f"{path}.{name}")
                if kind != "text":
                    yield Part(kind, _url(text, kind, f"{path}.{name}"))
                elif text:
                    yield Part(kind, text)
    if not known:
        validation.wrong_value(path, "expected an object with text, image, video, image_url or video_url.")


def _text(value: JSON, path: str) -> str:
    """Return a string, or the `url` of an object."""
    return validation.string(value.get("url") if isinstance(value, dict) else value, path)


def _url(value: str, kind: Kind, path: str) -> str:
    """Return a URL, which bare base64 of a picture is made."""
    if value.startswith(_URLS):
        return value
    if kind == "image":
        for beginning, format in _BASE64.items():
            if value.startswith(beginning):
                return f"data:image/{format};base64,{value}"
    return validation.wrong_value(path, f"expected the URL or data URL of the {kind}.")
