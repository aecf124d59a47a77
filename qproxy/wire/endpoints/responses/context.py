"""The treatment of a conversation that is too long: `context_management`, `truncation`, `compaction_trigger`.

OpenAPI `ContextManagementParam`, `CompactionTriggerItemParam`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from qproxy.wire.endpoints import validation
from qproxy.wire.endpoints.responses.input_items import TRIGGER
from qproxy.wire.events import JSON, ContextPolicy

NO_POLICY = ContextPolicy()


def context_management(value: JSON, path: str) -> JSON:
    """Return the entries; `compaction` is the only type that there is."""
    for number, entry in enumerate(validation.array(value, path)):
        place = f"{path}[{number}]"
        kind = validation.object_(entry, place).get("type")
        validation.one_of(("compaction",))(kind, f"{place}.type")
        if entry.get("compact_threshold") is not None:
            validation.integer(1)(entry["compact_threshold"], f"{place}.compact_threshold")
    return value


validation.with_schema(context_management, type="array", items={"type": "object"})


def context_policy(fields: Mapping[str, JSON], settings: Sequence[JSON]) -> ContextPolicy | None:
    """Return what the request permits where its conversation is too long; None for nothing.

    `settings` are the items of the conversation that change the request.
    """
    entries, management = fields["input"], fields.get("context_management", [])
    last = entries[-1] if isinstance(entries, list) and entries else {}
    policy = ContextPolicy(
        only_summary=last.get("type") == TRIGGER,
        compacts=bool(management),
        threshold=next(
            (each["compact_threshold"] for each in management if each.get("compact_threshold")), None
        ),
        truncates=fields.get("truncation") == "auto",
        is_stored="previous_response_id" in fields or "conversation" in fields,
    )
    return None if policy == NO_POLICY else replace(policy, settings=tuple(settings))
