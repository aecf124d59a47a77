"""`GET /v1/models` and `/v1/models/{id}` in Anthropic's shape, for a request that has `anthropic-version`.

An alias is shown with the model that serves it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from qproxy.wire.endpoints import validation
from qproxy.wire.endpoints.models import Model

MAX_LIMIT = 1000


def model_object(model: Model) -> dict[str, Any]:
    """Return Anthropic's `ModelInfo`."""
    return {
        "type": "model",
        "id": model.id,
        "display_name": f"{model.id} ({model.alias_of})" if model.alias_of else model.id,
        "created_at": datetime.fromtimestamp(model.created, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "lifecycle": "active",
        "max_input_tokens": model.context,
        "max_tokens": model.max_output,
    }


def model_list(models: Iterable[Model], query: Mapping[str, str]) -> dict[str, Any]:
    """Return one page of the list, every id once: all of them unless the query has a limit."""
    unique: dict[str, Model] = {}
    for model in models:
        unique.setdefault(model.id, model)
    names, has_more = _page(list(unique), query)
    return {
        "data": [model_object(unique[name]) for name in names],
        "has_more": has_more,
        "first_id": names[0] if names else None,
        "last_id": names[-1] if names else None,
    }


def _page(names: list[str], query: Mapping[str, str]) -> tuple[list[str], bool]:
    """Return the ids of a query's page, and whether there are more; an unknown cursor is ignored."""
    after, before, text = query.get("after_id"), query.get("before_id"), query.get("limit")
    if text is None:
        limit = len(names)
    else:
        number = int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else text
        limit = validation.integer(1, MAX_LIMIT)(number, "limit")
    if before in names:
        names = names[: names.index(before)]
        return names[max(0, len(names) - limit) :], len(names) > limit
    if after in names:
        names = names[names.index(after) + 1 :]
    return names[:limit], len(names) > limit
