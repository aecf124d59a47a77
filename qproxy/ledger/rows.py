"""A finished request as a row of the ledger, and as what it adds to its hour. Pure.

Tokens that no upstream reported are estimates (`telemetry.response_tokens`), and so are their costs.
"""

from __future__ import annotations

import math
from typing import TypeAlias

from qproxy.ledger.prices import Charge, Pricing
from qproxy.ledger.units import UNITS
from qproxy.telemetry.records import MAX_NAME_LENGTH, RequestRecord, format_counts, to_milliseconds
from qproxy.wire import storable
from qproxy.wire.events import Usage

LedgerRow: TypeAlias = dict[str, str | int | float | None]
HOUR = 3600
PRICED = ("prompt_tokens", "completion_tokens", *UNITS)
"""Columns of what has a price."""


def to_row(record: RequestRecord, ended: float, pricing: Pricing) -> LedgerRow:
    """Return the columns of `requests`."""
    story, usage = record.relay, record.relay.usage or Usage()
    prompt, completion = record.tokens()
    account, model = story.account or "", story.served_model or story.model
    charge = charge_of(record, pricing)
    return {
        "id": record.id,
        "ended": round(ended, 3),
        "key": record.key or "",
        "account": account,
        "endpoint": record.endpoint,
        "model": story.model[:MAX_NAME_LENGTH],
        "served_model": model[:MAX_NAME_LENGTH],
        "stream": int(record.stream),
        "status": record.status,
        "outcome": record.outcome,
        "error": record.error,
        "message": record.message,
        "finish_reason": record.finish_reason,
        "attempts": story.reported_attempts,
        "rounds": story.rounds,
        "failures": ",".join(f"{failed.account}:{failed.code}" for failed in story.failures) or None,
        "causes": record.causes(),
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "cached_tokens": usage.cached_tokens,
        "reasoning_tokens": usage.reasoning_tokens,
        **{unit: story.units.get(unit, 0) for unit in UNITS},
        "estimated": int(record.is_estimated),
        "cost": None if charge is None else charge.cost,
        "full_cost": None if charge is None else charge.full_cost,
        "amount": None if charge is None else charge.amount,
        "currency": None if charge is None else charge.currency,
        "tier": story.service_tier or None,
        "fallback": story.fallback or None,
        "first_byte_ms": to_milliseconds(record.first_byte),
        "total_ms": to_milliseconds(record.seconds),
        "overhead_ms": to_milliseconds(record.overhead_seconds) if story.attempts else None,
        "rules": ",".join(story.rules) or None,
        "repairs": format_counts(story.repairs),
        "tools": record.tool_counts(),
        "upstream_request_id": story.upstream_request_id,
    }


def charge_of(record: RequestRecord, pricing: Pricing) -> Charge | None:
    """Return what a request costs; None without a known price, or if it reached no account."""
    story = record.relay
    if story.account is None:
        return None
    reported = story.usage is not None and not record.is_estimated
    usage = story.usage if reported and story.usage is not None else Usage(*record.tokens())
    model, flex = story.served_model or story.model, story.service_tier == "flex"
    return pricing.charge(story.account, model, usage, story.units, flex=flex)


def storable_row(row: LedgerRow) -> LedgerRow:
    """Return the row with values that SQLite accepts, as close to its own as possible."""
    return {column: _storable(value) for column, value in row.items()}


def _storable(value: str | int | float | None) -> str | int | float | None:
    if isinstance(value, str):
        return storable.storable_text(value)
    if isinstance(value, int):
        return storable.parse_count(value)
    return value if isinstance(value, float) and math.isfinite(value) else None


def to_hourly_row(row: LedgerRow) -> LedgerRow | None:
    """Return what a row adds to `hours`; None for a request that reached no account, which costs nothing."""
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
        "unpriced": int(row["cost"] is None and any(row[name] for name in PRICED)),
        **{unit: row[unit] for unit in UNITS},
        "saved": 0.0 if row["cost"] is None else float(row["full_cost"] or 0) - float(row["cost"]),
    }
