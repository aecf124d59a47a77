"""`GET /v1/models` and `/v1/models/{id}`: OpenAI's list, from what upstreams list.

Here: reading an upstream's list (OpenAI's shape, Ollama's and llama.cpp's extras ignored), dropping what
cannot chat or embed, and our own list.  OpenAPI `ListModelsResponse`, `Model`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from qproxy.wire import storable
from qproxy.wire.errors import RequestError
from qproxy.wire.events import JSON
from qproxy.wire.model_aliases import Aliases

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

    def body(self) -> dict[str, Any]:
        """OpenAI's `Model`; the limits are extras that several clients read."""
        body: dict[str, Any] = {
            "id": self.id,
            "object": "model",
            "created": self.created,
            "owned_by": self.owned_by,
        }
        if self.context is not None:
            body["context_length"] = self.context
        if self.max_output is not None:
            body["max_output_tokens"] = self.max_output
        return body


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
        if isinstance(name, str) and name and storable.is_text(name) and is_text_model(name):
            owner = entry.get("owned_by")
            models.append(
                Model(
                    name,
                    storable.count(entry.get("created"), storable.MAX_SECONDS),
                    storable.text(owner) if isinstance(owner, str) and owner else "qwen",
                )
            )
    return models


def model_list(models: Iterable[Model]) -> dict[str, Any]:
    """The answer to `GET /v1/models`: every id once, in the given order."""
    unique: dict[str, Model] = {}
    for model in models:
        unique.setdefault(model.id, model)
    return {"object": "list", "data": [model.body() for model in unique.values()]}


def model_object(models: Iterable[Model], name: str, aliases: Aliases) -> dict[str, Any]:
    """The answer to `GET /v1/models/{id}`; RequestError 404 when there is no such model."""
    known = {model.id: model for model in models}
    if name in known:
        return known[name].body()
    if aliases.lookup(name) is not None:
        return Model(name, owned_by="alias").body()
    raise RequestError(
        f"The model {name[:200]!r} does not exist or you do not have access to it.",
        status=404,
        param="model",
        code="model_not_found",
    )
