"""`qproxy check --cost`: what would save most, from the usage ledger.

Each figure is an estimate that names its assumption, because the ledger has no texts: nothing knows whether
two prompts begin alike, or whether a smaller model is good enough.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from qproxy.backends.ledgers import open_ledger_reader
from qproxy.bootstrap.models import build_catalog
from qproxy.bootstrap.telemetry import build_pricing
from qproxy.config import Config
from qproxy.diagnostics.report import Finding, State
from qproxy.ledger import LedgerError, Pricing
from qproxy.ledger.usage import RequestRow
from qproxy.wire.events import Usage
from qproxy.wire.models import ModelCatalog

AREA = "costs"
DAYS = 30
PAGE, MAX_ROWS = 1000, 20_000
CACHE_SECONDS = 300.0
"""Life of a prompt in a cache."""
SHORT_PROMPT, SHORT_ANSWER = 2000, 300
"""Tokens of a turn that a smaller model may serve."""


async def check_costs(config: Config) -> Sequence[Finding]:
    """Return what would have saved most in the last days, the largest first."""
    since = time.time() - DAYS * 86400
    try:
        reader = open_ledger_reader(config)
        try:
            rows: list[RequestRow] = []
            before: tuple[float, str] | None = None
            while len(rows) < MAX_ROWS:
                page = await reader.recent_requests(PAGE, before=before)
                rows += [row for row in page if row["ended"] >= since]
                if len(page) < PAGE or page[-1]["ended"] < since:
                    break
                before = (page[-1]["ended"], page[-1]["id"])
        finally:
            await reader.aclose()
    except LedgerError as error:
        return [Finding(AREA, "usage ledger", "failed", str(error))]
    catalog = build_catalog(config.model_rows)
    flex = {account.name for account in config.all_accounts() if account.flex_url}
    return cost_findings(rows, build_pricing(config, catalog), catalog, flex)


def cost_findings(
    rows: Sequence[RequestRow], pricing: Pricing, catalog: ModelCatalog, flex: Iterable[str]
) -> list[Finding]:
    """Return a line for the costs, and one for each way to save, the largest first; `flex` names the accounts
    with a batch host."""
    priced = [row for row in rows if row["cost"] is not None]
    unknown = sum(row["cost"] is None and row["account"] != "" for row in rows)
    spent = sum(row["cost"] for row in priced)
    text = f"${spent:.2f} for {len(priced)} requests of {DAYS} days"
    found = [Finding(AREA, "spent", "ok", text + (f", and {unknown} of unknown cost" if unknown else ""))]
    hosts = set(flex)
    flexible = [row for row in priced if _can_flex(row, catalog, hosts)]
    ways = [
        (
            "prompt cache",
            sum(_cache_saving(priced, pricing)),
            "if a prompt repeats the one before it of the same key and model within 5 minutes",
            "keep the start of prompts the same, and set prompt_cache",
        ),
        (
            "flex tier",
            sum(max(0.0, row["cost"] - (row["full_cost"] or row["cost"]) / 2) for row in flexible),
            f"if the {len(flexible)} requests that were not streamed may wait",
            'send service_tier "flex"',
        ),
        _smaller_model(priced, pricing, catalog),
    ]
    for name, dollars, assumption, advice in sorted(ways, key=lambda way: -way[1]):
        share = f" ({dollars / spent:.0%})" if spent else ""
        state: State = "warning" if spent and dollars / spent >= 0.05 else "ok"
        message = f"would have saved ${dollars:.2f}{share} {assumption}"
        found.append(Finding(AREA, name, state, message, advice if state == "warning" else ""))
    return found


def _can_flex(row: RequestRow, catalog: ModelCatalog, hosts: set[str]) -> bool:
    """Return whether the batch host could have served a request whose client did not stream."""
    served = not row["stream"] and row["tier"] is None and row["account"] in hosts
    return served and bool(catalog.get(row["served_model"]).batch_chat)


def _cache_saving(rows: Iterable[RequestRow], pricing: Pricing) -> Iterator[float]:
    """Yield the dollars for tokens of an earlier prompt that were not read from the cache."""
    earlier: dict[tuple[str, str], RequestRow] = {}
    for row in sorted(rows, key=lambda row: row["ended"]):
        place = (row["key"], row["served_model"])
        last, earlier[place] = earlier.get(place), row
        if last is None or row["ended"] - last["ended"] > CACHE_SECONDS or row["tier"] is not None:
            continue
        repeated = min(last["prompt_tokens"], row["prompt_tokens"])
        if repeated >= 1024 and repeated > row["cached_tokens"]:
            now = pricing.cost(row["account"], row["served_model"], _usage(row, row["cached_tokens"]))
            then = pricing.cost(row["account"], row["served_model"], _usage(row, repeated))
            yield max(0.0, (now or 0.0) - (then or 0.0))


def _smaller_model(
    rows: Iterable[RequestRow], pricing: Pricing, catalog: ModelCatalog
) -> tuple[str, float, str, str]:
    """Return what the cheapest chat model with a known price would have saved for short turns."""
    short = [
        row
        for row in rows
        if 0 < row["prompt_tokens"] <= SHORT_PROMPT and row["completion_tokens"] <= SHORT_ANSWER
    ]
    names = [
        spec.id
        for spec in catalog.models()
        if spec.prices and spec.is_for("chat") and spec.tools and not spec.retires
    ]
    savings: Mapping[str, float] = {name: sum(_differences(short, name, pricing)) for name in names}
    best = max(savings, key=lambda name: savings[name], default="")
    dollars = max(0.0, savings.get(best, 0.0))
    return (
        "smaller model",
        dollars,
        f"if {best or 'a smaller model'} serves the {len(short)} short turns as well",
        f"try {best} for short turns" if best else "",
    )


def _differences(rows: Iterable[RequestRow], model: str, pricing: Pricing) -> Iterator[float]:
    for row in rows:
        cost = pricing.cost(row["account"], model, _usage(row, row["cached_tokens"]))
        if cost is not None:
            yield max(0.0, row["cost"] - cost)


def _usage(row: Mapping[str, Any], cached: int) -> Usage:
    return Usage(row["prompt_tokens"], row["completion_tokens"], 0, {"cached_tokens": cached})
