"""`GET /v1/models` and `/v1/models/{id}`: the models that upstreams list, and OpenAI's shape of them.

Here: reading an upstream's list (OpenAI's shape, Ollama's and llama.cpp's extras ignored), dropping what
cannot chat or embed, finding one, and our own list.  OpenAPI `ListModelsResponse`, `Model`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from qproxy.wire import storable
from qproxy.wire.errors import RequestError
from qproxy.wire.events import JSON
from qproxy.wire.model_aliases import ModelAliases

# DashScope lists pictures, speech and video beside text; none of them answers a chat or an embedding.
_NOT_TEXT = (
    "qwen-image*", "wan2*", "wanx*", "wan-*", "qwen-audio*", "*-tts*", "*-asr*", "*-realtime*", "cosyvoice*",
    "paraformer*", "sambert*", "z-image*", "*-livetranslate*", "*-rerank*", "gte-rerank*",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Model:
    """One model a client may ask for."""

    id: str
    created: int = 0
    """Unix seconds; 0 where the upstream does not say."""
    owned_by: str = "qwen"
    context: int | None = None
    """Input and output tokens together, where known."""
    max_output: int | None = None


def is_text_model(name: str) -> bool:
    """Whether a model of this name reads and writes text (or embeds it)."""
    return not any(fnmatchcase(name.lower(), pattern) for pattern in _NOT_TEXT)


def parse_models(body: JSON) -> list[Model]:
    """The text models in an upstream's answer to `GET /models`; ValueError when it is not such a list."""
    data = body.get("data") if isinstance(body, dict) else None
    if not isinstance(data, list):
        raise ValueError("not a list of models")
    models = []
    for entry in data:
        name = entry.get("id") if isinstance(entry, dict) else None
        if isinstance(name, str) and name and storable.is_storable_text(name) and is_text_model(name):
            owner = entry.get("owned_by")
            models.append(
                Model(
                    name,
                    storable.parse_count(entry.get("created"), storable.MAX_SECONDS),
                    storable.storable_text(owner) if isinstance(owner, str) and owner else "qwen",
                )
            )
    return models


def model_object(model: Model) -> dict[str, Any]:
    """Return OpenAI's `Model`; the limits are extras that several clients read."""
    body: dict[str, Any] = {
        "id": model.id,
        "object": "model",
        "created": model.created,
        "owned_by": model.owned_by,
    }
    if model.context is not None:
        body["context_length"] = model.context
    if model.max_output is not None:
        body["max_output_tokens"] = model.max_output
    return body


def model_list(models: Iterable[Model]) -> dict[str, Any]:
    """Return OpenAI's answer to `GET /v1/models`: every id once, in the given order."""
    unique: dict[str, Model] = {}
    for model in models:
        unique.setdefault(model.id, model)
    return {"object": "list", "data": [model_object(model) for model in unique.values()]}


def find_model(models: Iterable[Model], name: str, aliases: ModelAliases) -> Model:
    """Return the model with this name or alias.  Raises RequestError 404 when there is none."""
    known = {model.id: model for model in models}
    if name in known:
        return known[name]
    if aliases.lookup(name) is not None:
        return Model(name, owned_by="alias")
    raise RequestError(
        f"The model {name[:200]!r} does not exist or you do not have access to it.",
        status=404,
        param="model",
        code="model_not_found",
    )
