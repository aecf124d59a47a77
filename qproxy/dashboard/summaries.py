"""A row of the ledger as the story of a request, in sentences.

Pure.  Never a prompt: the ledger has none.  A rule or a repair is told in the words of its own table, so that what is
new there is told here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qproxy.dashboard.formatting import format_milliseconds, format_money, format_number, plural
from qproxy.wire.dialects.request_rules import RULES
from qproxy.wire.tool_calls.repairs import REPAIRS

OUTCOMES = {
    "ok": "answered",
    "error": "refused",
    "internal_error": "internal error",
    "upstream_truncated": "truncated by the upstream",
    "client_disconnected": "client disconnected",
    "shutting_down": "ended with the server",
}
_RULES = {rule.name: rule.doc for rule in RULES}


def outcome_label(row: Mapping[str, Any]) -> str:
    """How it ended, in two words."""
    return OUTCOMES.get(row["outcome"], str(row["outcome"]))


def level(row: Mapping[str, Any]) -> str:
    """ok, warning or error."""
    return {"ok": "ok", "client_disconnected": "warning"}.get(row["outcome"], "error")


def parse_counts(text: str | None) -> list[tuple[str, str]]:
    """`a:1,b:2` taken apart; the last colon divides."""
    return [
        (name, message)
        for name, _, message in (item.rpartition(":") for item in (text or "").split(",") if item)
    ]


def summarize(row: Mapping[str, Any]) -> list[str]:
    """What happened, in order."""
    sentences = [
        _describe_request(row),
        *_describe_attempts(row),
        _describe_upstream(row),
        _describe_outcome(row),
        _describe_tokens(row),
    ]
    sentences += [
        f"The server ran its tool {name.removesuffix('!')} {plural(int(count), 'time')}"
        f"{', which failed' if name.endswith('!') else ''}."
        for name, count in parse_counts(row["tools"])
    ]
    sentences += [
        f"Rule {name}: {_RULES.get(name, 'of another version')}."
        for name in (row["rules"] or "").split(",")
        if name
    ]
    sentences += [
        f"Repaired {plural(int(count), 'time')}, {name}: {REPAIRS.get(name, 'of another version')}."
        for name, count in parse_counts(row["repairs"])
    ]
    return [sentence for sentence in sentences if sentence]


def _describe_request(row: Mapping[str, Any]) -> str:
    who = f"The key {row['key']}" if row["key"] else "A client without a key"
    how = "as a stream" if row["stream"] else "as a whole"
    return f"{who} asked {row['endpoint']} for {row['model']}, {how}."


def _describe_attempts(row: Mapping[str, Any]) -> list[str]:
    return [
        f"The account {account} did not answer: {code}." for account, code in parse_counts(row["failures"])
    ]


def _describe_upstream(row: Mapping[str, Any]) -> str:
    if not row["account"]:
        return "It reached no account."
    attempts = f", at try {row['attempts']}" if row["attempts"] > 1 else ""
    return f"The account {row['account']} was asked for {row['served_model']}{attempts}."


def _describe_outcome(row: Mapping[str, Any]) -> str:
    first = (
        f"the answer began after {format_milliseconds(row['first_byte_ms'])} and "
        if row["first_byte_ms"] is not None
        else "it "
    )
    reason = f", finish reason {row['finish_reason']}" if row["finish_reason"] else ""
    error = f", error {row['error']}" if row["error"] else ""
    ours = (
        f", {format_milliseconds(row['overhead_ms'])} of it spent here"
        if row["overhead_ms"] is not None
        else ""
    )
    message = f"{first}was over after {format_milliseconds(row['total_ms'])}{ours}: {outcome_label(row)}, status {row['status']}{reason}{error}."
    return message[0].upper() + message[1:]


def _describe_tokens(row: Mapping[str, Any]) -> str:
    if not row["prompt_tokens"] and not row["completion_tokens"]:
        return ""
    cached = f" ({format_number(row['cached_tokens'])} from the cache)" if row["cached_tokens"] else ""
    thought = (
        f" ({format_number(row['reasoning_tokens'])} of them thoughts)" if row["reasoning_tokens"] else ""
    )
    guess = " These are guesses: the model's server told none." if row["estimated"] else ""
    cost = f" About {format_money(row['cost'])}." if row["cost"] is not None else ""
    return f"{plural(row['prompt_tokens'], 'token')} in{cached}, {format_number(row['completion_tokens'])} out{thought}.{guess}{cost}"
