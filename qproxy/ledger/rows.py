"""A finished record as a row of the ledger, and as what it adds to its hour.  Pure."""

from __future__ import annotations

import math
from typing import TypeAlias

from qproxy.ledger.prices import Pricing
from qproxy.telemetry.records import LONGEST_NAME, Record, counted, milliseconds
from qproxy.wire import storable
from qproxy.wire.events import Usage

Row: TypeAlias = dict[str, str | int | float | None]
HOUR = 3600


def row_of(record: Record, ended: float, pricing: Pricing) -> Row:
    """The columns of `requests`."""
    story, usage = record.story, record.story.usage or Usage()
    prompt, completion = record.tokens()
    account, model = story.account or "", story.served_model or story.model
    return {
        "id": record.id,
        "ended": round(ended, 3),
        "key": record.key or "",
        "account": account,
        "endpoint": record.endpoint,
        "model": story.model[:LONGEST_NAME],
        "served_model": model[:LONGEST_NAME],
        "stream": int(record.stream),
        "status": record.status,
        "outcome": record.outcome,
        "error": record.error,
        "finish": record.finish,
        "tries": story.tries,
        "failures": ",".join(f"{failed}:{code}" for failed, code in story.failures) or None,
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "cached_tokens": usage.cached_tokens,
        "reasoning_tokens": usage.reasoning_tokens,
        "estimated": int(story.usage is None and prompt + completion > 0),
        "cost": pricing.cost(account, model, story.usage or Usage(prompt, completion)) if account else None,
        "first_byte_ms": milliseconds(record.first_byte),
        "total_ms": milliseconds(record.seconds),
        "overhead_ms": milliseconds(record.overhead) if story.tries else None,
        "rules": ",".join(story.rules) or None,
        "repairs": counted(story.repairs),
        "tools": record.tool_counts(),
        "upstream_request_id": story.upstream_request_id,
    }


def storable_row(row: Row) -> Row:
    """Return the row with values that SQLite takes, as near to its own as can be."""
    return {column: _storable(value) for column, value in row.items()}


def _storable(value: str | int | float | None) -> str | int | float | None:
    if isinstance(value, str):
        return storable.text(value)
    if isinstance(value, int):
        return storable.count(value)
    return value if isinstance(value, float) and math.isfinite(value) else None


def hour_of(row: Row) -> Row | None:
    """What a row adds to `hours`; None for a request that reached no account, which nobody pays for."""
    if not row["account"]:
        return None
    return {
        "hour": int(float(row["ended"] or 0)) // HOUR * HOUR,
        "key": row["key"],
        "account": row["account"],
        "model": row["served_model"],
        "failed": int(row["outcome"] != "ok"),
        "prompt_tokens": row["prompt_tokens"],
        "completion_tokens": row["completion_tokens"],
        "cost": row["cost"] or 0.0,
        "unpriced": int(row["cost"] is None and bool(row["prompt_tokens"] or row["completion_tokens"])),
    }
