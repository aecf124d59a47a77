"""`POST /v1/images/generations`, `/v1/images/edits` and `/v1/images/variations` as an `ImageInput`.

OpenAI's `CreateImageRequest` and its two forms. What no model of Model Studio has is rejected where the
picture would not be what was asked for (masks, transparency, another format), and dropped elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from qproxy.wire.endpoints import validation
from qproxy.wire.endpoints.request_schemas import NAME, object_schema
from qproxy.wire.errors import RequestError
from qproxy.wire.events import JSON

FIELDS = {
    "n": validation.integer(1, 10),
    "size": validation.string,
    "quality": validation.one_of(("low", "medium", "high", "xhigh", "max", "auto", "standard", "hd")),
    "response_format": validation.one_of(("url", "b64_json")),
    "background": validation.one_of(("transparent", "opaque", "auto")),
    "output_format": validation.one_of(("png", "webp", "jpeg", "gif", "svg")),
    "stream": validation.boolean,
    "partial_images": validation.integer(0, 3),
}
MODEL_STUDIO_FIELDS = frozenset(
    (
        "negative_prompt", "seed", "prompt_extend", "prompt_extend_mode", "enable_thinking", "watermark",
        "bbox_list", "enable_sequential", "thinking_mode", "color_palette",
    )
)  # fmt: skip
"""Fields of `parameters` at Model Studio."""
HARMLESS = frozenset(("background", "output_format"))
"""Fields whose remaining values ask for what every picture is."""
_NAMED = frozenset(("model", "prompt", *FIELDS))
_PROPERTIES = validation.properties(FIELDS)
_PROMPT: JSON = {"type": "string", "minLength": 1}
_FILE: JSON = {"type": "string", "format": "binary"}
_FILES: JSON = {"type": ["string", "array"], "items": _FILE}
GENERATION_SCHEMA = object_schema(["model", "prompt"], {"model": NAME, "prompt": _PROMPT}, _PROPERTIES)
EDIT_SCHEMA = object_schema(
    ["model", "prompt", "image"], {"model": NAME, "prompt": _PROMPT, "image": _FILES}, _PROPERTIES
)
VARIATION_SCHEMA = object_schema(["model", "image"], {"model": NAME, "image": _FILES}, _PROPERTIES)
VARIATION_PROMPT = "Make a variation of this picture."


@dataclass(frozen=True, slots=True)
class ImageInput:
    """One request for pictures."""

    model: str
    prompt: str
    images: Sequence[str] = field(default=(), repr=False)
    """Pictures to edit, as URLs or data URIs."""
    n: int = 1
    size: str | None = None
    """`WIDTHxHEIGHT`; None where the model decides."""
    quality: str = "auto"
    base64: bool = False
    """Whether the client wants the pictures themselves rather than links."""
    stream: bool = False
    params: Mapping[str, JSON] = field(default_factory=dict)
    """Fields of Model Studio's own."""
    ignored: tuple[str, ...] = ()


def decode_generation(body: JSON) -> ImageInput:
    """Return the validated request of a text. Raises RequestError naming the invalid field."""
    body = validation.body(body)
    model = validation.require_model(body, None)
    fields = validation.check_fields(body, FIELDS)
    return _decode(model, fields, _images(fields))


def decode_form(
    model: str | None, values: Mapping[str, str], images: Sequence[str], *, prompt: str | None = None
) -> ImageInput:
    """Return the validated request of a form, whose values are texts; `prompt` stands for a missing one.

    Raises RequestError naming the invalid field.
    """
    if not model:
        validation.missing("model")
    fields: dict[str, JSON] = {name: _typed(name, text) for name, text in values.items()}
    if prompt is not None:
        fields["prompt"] = prompt
    for name, check in FIELDS.items():
        if name in fields:
            fields[name] = check(fields[name], name)
    if not images:
        validation.missing("image")
    return _decode(model, fields, images)


def _typed(name: str, text: str) -> JSON:
    """Return a field of a form as its JSON value."""
    if name in ("n", "partial_images", "seed") and text.removeprefix("-").isdecimal():
        return int(text)
    if text in ("true", "false"):
        return text == "true"
    return text


def _images(fields: Mapping[str, JSON]) -> list[str]:
    """Return the pictures of Model Studio's field `image`."""
    value = fields.get("image")
    if value is None:
        return []
    items = value if isinstance(value, list) else [value]
    return [validation.string(item, f"image[{n}]") for n, item in enumerate(items)]


def _decode(model: str, fields: Mapping[str, JSON], images: Sequence[str]) -> ImageInput:
    if not isinstance(fields.get("prompt"), str):
        validation.missing("prompt")
    if not fields["prompt"].strip():
        validation.wrong_value("prompt", "the text is empty.")
    _reject_unavailable(fields)
    params = {name: value for name, value in fields.items() if name in MODEL_STUDIO_FIELDS}
    ignored = fields.keys() - _NAMED - MODEL_STUDIO_FIELDS - {"image"}
    if fields.get("partial_images"):
        ignored |= {"partial_images"}
    size = fields.get("size")
    return ImageInput(
        model=model,
        prompt=fields["prompt"],
        images=images,
        n=fields.get("n", 1),
        size=None if size in (None, "", "auto") else size,
        quality=fields.get("quality", "auto"),
        base64=fields.get("response_format") == "b64_json"
        or (model.startswith(("gpt-image", "chatgpt-image")) and "response_format" not in fields),
        stream=bool(fields.get("stream")),
        params=params,
        ignored=tuple(sorted(ignored)),
    )


def _reject_unavailable(fields: Mapping[str, JSON]) -> None:
    """Raise RequestError for pictures that cannot be had: others would not be what was asked for."""
    if fields.get("background") == "transparent":
        raise _unsupported("background", "the models make opaque pictures only")
    if fields.get("output_format", "png") != "png":
        raise _unsupported("output_format", "the models make PNG only")
    for name in ("mask", "markup", "svg"):
        if fields.get(name):
            raise _unsupported(name, "describe in the prompt what is to be changed")


def _unsupported(name: str, reason: str) -> RequestError:
    message = f"Unsupported value for '{name}': {reason}."
    return RequestError(message, param=name, code="unsupported_value")
