"""`GET /v1/models` and `/v1/models/{id}`: the models that upstreams list, and OpenAI's shape of them.

This module reads an upstream's list (OpenAI's shape; extras of Ollama and llama.cpp are ignored), drops
models that can neither chat nor embed, finds one, and encodes qproxy's own list. OpenAPI
`ListModelsResponse`, `Model`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from qproxy.wire import storable
from qproxy.wire.errors import RequestError
from qproxy.wire.events import JSON
from qproxy.wire.model_aliases import ModelAliases
from qproxy.wire.models import ModelCatalog

_SERVED_TASKS = frozenset(
    ("chat", "completion", "embedding", "multimodal_embedding", "moderation", "decision")
)
"""DashScope lists pictures, speech and video beside text; none of them supports chat or embeddings."""


@dataclass(frozen=True, slots=True)
class Model:
    """One model that a client may request."""

    id: str
    created: int = 0
    """Unix seconds; 0 if the upstream does not report it."""
    owned_by: str = "qwen"
    context: int | None = None
    """Input and output tokens together, if known."""
    max_output: int | None = None
    shutdown_date: str | None = None
    """When it is retired, where that is known."""
    alias_of: str | None = None
    """The model that serves it, where this is an alias."""


def is_text_model(name: str, catalog: ModelCatalog) -> bool:
    """Return whether a model of this name reads and writes text (or embeds it), as far as is known."""
    spec = catalog.find(name)
    return spec is None or spec.tasks is None or not _SERVED_TASKS.isdisjoint(spec.tasks)


def parse_models(body: JSON, catalog: ModelCatalog) -> list[Model]:
    """Return the text models of an upstream's `GET /models`. Raises ValueError if it is not such a list."""
    data = body.get("data") if isinstance(body, dict) else None
    if not isinstance(data, list):
        raise ValueError("not a list of models")
    models = []
    for entry in data:
        name = entry.get("id") if isinstance(entry, dict) else None
        if (
            isinstance(name, str)
            and name
            and storable.is_storable_text(name)
            and is_text_model(name, catalog)
        ):
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
    if model.shutdown_date is not None:
        body["shutdown_date"] = model.shutdown_date
    return body


def model_list(models: Iterable[Model], query: Mapping[str, str]) -> dict[str, Any]:
    """Return OpenAI's answer to `GET /v1/models`: every id once, in the given order; it knows no pages.

    codex, which sends its `client_version`, also requires `models`. That stays empty: an entry replaces the
    prompt of codex (`base_instructions`), and without one it uses its own.
    """
    unique: dict[str, Model] = {}
    for model in models:
        unique.setdefault(model.id, model)
    codex: dict[str, Any] = {"models": []} if "client_version" in query else {}
    return {"object": "list", "data": [model_object(model) for model in unique.values()], **codex}


def find_model(models: Iterable[Model], name: str, aliases: ModelAliases) -> Model:
    """Return the model with this name or alias. Raises RequestError 404 for an unknown name."""
    known = {model.id: model for model in models}
    if name in known:
        return known[name]
    served = aliases.lookup(name)
    if served is not None:
        return Model(name, owned_by="alias", alias_of=served)
    raise RequestError(
        f"The model {name[:200]!r} does not exist or you do not have access to it.",
        status=404,
        param="model",
        code="model_not_found",
    )
