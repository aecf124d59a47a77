"""`/v1/conversations`: the bodies of requests, and the conversation object.

OpenAPI `CreateConversationBody`, `UpdateConversationBody`, `ConversationResource`, `DeletedConversation`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from qproxy.wire.endpoints import validation
from qproxy.wire.endpoints.responses import input_items
from qproxy.wire.endpoints.responses.request import metadata
from qproxy.wire.errors import RequestError
from qproxy.wire.events import JSON

MAX_ITEMS = 20
"""Items of one request."""
ITEMS: JSON = {"type": "array", "maxItems": MAX_ITEMS, "items": {"type": "object"}}
_METADATA: JSON = validation.properties({"metadata": metadata})
CREATE_SCHEMA: JSON = {
    "type": "object",
    "properties": {"items": {**ITEMS, "type": ["array", "null"]}, **_METADATA},
}
UPDATE_SCHEMA: JSON = {"type": "object", "required": ["metadata"], "properties": _METADATA}
ITEMS_SCHEMA: JSON = {"type": "object", "required": ["items"], "properties": {"items": ITEMS}}


def decode_metadata(body: JSON, *, required: bool = False) -> dict[str, str]:
    """Return the metadata of a request. Raises RequestError."""
    value = validation.body(body).get("metadata")
    if value is None:
        return validation.missing("metadata") if required else {}
    checked: dict[str, str] = metadata(value, "metadata")
    return checked


def referenced_items(body: JSON) -> list[str]:
    """Return the ids of the items that a request's items refer to."""
    return input_items.referenced_ids(body.get("items") if isinstance(body, dict) else None)


def decode_items(
    body: JSON,
    *,
    source: str,
    known: Mapping[str, JSON],
    before: Collection[str] = (),
    required: bool = False,
    unseal: Callable[[str], str | None],
) -> tuple[list[JSON], list[str]]:
    """Return the canonical items of a request, and the paths of those left out. Raises RequestError.

    `source` gives items without an id one, `known` has the items that references may name, and `before` are
    the ids that the conversation has; `unseal` opens compaction items.
    """
    value = validation.body(body).get("items")
    if value is None:
        return validation.missing("items") if required else ([], [])
    if len(validation.array(value, "items")) > MAX_ITEMS:
        message = f"Invalid 'items': {len(value)} items, the limit is {MAX_ITEMS}."
        raise RequestError(message, param="items", code="array_above_max_length")
    items, ignored = input_items.parse_items(
        value, response=source, known=known, before=before, unseal=unseal, field="items"
    )
    _reject_duplicates(items, before)
    return items, ignored


def _reject_duplicates(items: Sequence[JSON], before: Collection[str]) -> None:
    """Raise RequestError for an id that the conversation or another one of the items has."""
    seen = set(before)
    for item in items:
        if item["id"] in seen:
            message = f"The conversation would have two items with the id {item['id'][:100]!r}."
            raise RequestError(message, param="items", code="invalid_value")
        seen.add(item["id"])


def conversation_object(id: str, created: int, metadata: Mapping[str, str]) -> dict[str, JSON]:
    return {"id": id, "object": "conversation", "created_at": created, "metadata": dict(metadata)}


def item_list(items: Sequence[JSON]) -> dict[str, JSON]:
    """Return all of some items as a list object."""
    ends = (
        {"first_id": items[0]["id"], "last_id": items[-1]["id"]} if items else {"first_id": "", "last_id": ""}
    )
    return {"object": "list", "data": list(items), "has_more": False, **ends}
