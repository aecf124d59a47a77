"""A row of the ledger as sentences. Pure.

Rules and repairs are described by their own tables. The ledger contains no prompts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qproxy.dashboard.formatting import format_milliseconds, format_money, format_number, plural
from qproxy.ledger.units import UNITS
from qproxy.wire.dialects.request_rules import RULES
from qproxy.wire.tool_calls.repairs import REPAIRS

OUTCOMES = {
    "ok": "answered",
    "error": "refused",
    "internal_error": "internal error",
    "upstream_truncated": "truncated by the upstream",
    "client_disconnected": "client disconnected",
    "shutting_down": "server shut down",
}
_RULES = {rule.name: rule.doc for rule in RULES}


def outcome_label(row: Mapping[str, Any]) -> str:
    """Return a label of the outcome."""
    return OUTCOMES.get(row["outcome"], str(row["outcome"]))


def level(row: Mapping[str, Any]) -> str:
    """Return ok, warning or error."""
    return {"ok": "ok", "client_disconnected": "warning"}.get(row["outcome"], "error")


def parse_counts(text: str | None) -> list[tuple[str, str]]:
    """Parse `a:1,b:2`; the last colon separates."""
    return [
        (name, message)
        for name, _, message in (item.rpartition(":") for item in (text or "").split(",") if item)
    ]


def summarize(row: Mapping[str, Any]) -> list[str]:
    """Return sentences about the request, in order."""
    sentences = [
        _describe_request(row),
        *_describe_attempts(row),
        _describe_upstream(row),
        _describe_outcome(row),
        _describe_tokens(row),
    ]
    sentences += [
        f"The server ran tool {name.removesuffix('!')} {plural(int(count), 'time')}"
        f"{', which failed' if name.endswith('!') else ''}."
        for name, count in parse_counts(row["tools"])
    ]
    sentences += [
        f"Rule {name}: {_RULES.get(name, 'unknown in this version')}."
        for name in (row["rules"] or "").split(",")
        if name
    ]
    sentences += [
        f"Repaired {plural(int(count), 'time')}, {name}: {REPAIRS.get(name, 'unknown in this version')}."
        for name, count in parse_counts(row["repairs"])
    ]
    return [sentence for sentence in sentences if sentence]


def _describe_request(row: Mapping[str, Any]) -> str:
    client = f"API key {row['key']}" if row["key"] else "A client without an API key"
    mode = "streamed" if row["stream"] else "not streamed"
    return f"{client} requested {row['model'] or 'no model'} from {row['endpoint']}, {mode}."


def _describe_attempts(row: Mapping[str, Any]) -> list[str]:
    if row["causes"]:
        causes = (line.partition(": ") for line in row["causes"].split("\n"))
        return [f"Account {account} failed: {cause.rstrip('.')}." for account, _, cause in causes]
    return [f"Account {account} failed: {code}." for account, code in parse_counts(row["failures"])]


def _describe_upstream(row: Mapping[str, Any]) -> str:
    if not row["account"]:
        return "The request reached no account."
    attempts = f" on attempt {row['attempts']}" if row["attempts"] > 1 else ""
    rounds = f", in {plural(row['rounds'], 'round')} of tools" if row["rounds"] > 1 else ""
    return f"Account {row['account']} was used for {row['served_model']}{attempts}{rounds}."


def _describe_outcome(row: Mapping[str, Any]) -> str:
    first = (
        f"First event after {format_milliseconds(row['first_byte_ms'])}; finished"
        if row["first_byte_ms"] is not None
        else "Finished"
    )
    reason = f", finish reason {row['finish_reason']}" if row["finish_reason"] else ""
    error = f", error {row['error']}" if row["error"] else ""
    error += f": {row['message'].rstrip('.')}" if row["message"] else ""
    overhead = (
        f" ({format_milliseconds(row['overhead_ms'])} in qproxy)" if row["overhead_ms"] is not None else ""
    )
    return (
        f"{first} after {format_milliseconds(row['total_ms'])}{overhead}: "
        f"{outcome_label(row)}, status {row['status']}{reason}{error}."
    )


def _describe_tokens(row: Mapping[str, Any]) -> str:
    units = ", ".join(f"{format_number(row[unit])} {unit}" for unit in UNITS if row.get(unit))
    cost = f" About {format_money(row['cost'])}." if row["cost"] is not None else " Its cost is unknown."
    if not row["prompt_tokens"] and not row["completion_tokens"]:
        return f"{units}.{cost}" if units else ""
    cached = f" ({format_number(row['cached_tokens'])} cached)" if row["cached_tokens"] else ""
    reasoning = f" ({format_number(row['reasoning_tokens'])} reasoning)" if row["reasoning_tokens"] else ""
    estimated = " Estimated; the upstream reported no usage." if row["estimated"] else ""
    sent, received = plural(row["prompt_tokens"], "token"), format_number(row["completion_tokens"])
    return f"{sent} in{cached}, {received} out{reasoning}{units and f', {units}'}.{estimated}{cost}"
