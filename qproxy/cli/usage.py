"""`qproxy usage`: print the usage ledger as a table, JSON or CSV.

It reads the ledger itself, so it works whether a server is running or not.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qproxy import config as configuration
from qproxy.cli.help import CONFIGURATION, HelpPage
from qproxy.cli.output import format_table, output_width, print_error, print_note, print_result
from qproxy.ledger.units import UNITS
from qproxy.limits.windows import WINDOWS

HELP = "show requests, tokens and estimated cost by key, account or model"
PAGE = HelpPage(
    about="""Show requests, tokens and their estimated cost from the usage ledger, by key, account or model,
    within windows (the last five hours, days, weeks, months). A running server writes the ledger with at most
    a second of delay.""",
    examples={
        "qproxy usage": "by key, in the default windows",
        "qproxy usage --by model --window month --csv": "as CSV, for a spreadsheet",
        "qproxy usage --savings --by model": "what the cache and the flex tier have saved",
        "qproxy usage --merge b.sqlite3 c.sqlite3": "with the ledgers of other machines, copied here",
    },
    files={
        **CONFIGURATION,
        "$QPROXY_HOME/ledger.sqlite3": "the ledger, unless the setting ledger names another one",
    },
)
ALL_TIME = "all"
DEFAULT_PERIOD = ("5h", "day", "week", "month")
COLUMNS = (
    "window",
    "since",
    "name",
    "requests",
    "failed",
    "prompt_tokens",
    "completion_tokens",
    "cost_usd",
    "unpriced",
    "saved_usd",
    *UNITS,
)


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", metavar="PATH", help="configuration file that names the ledger")
    parser.add_argument(
        "--by", choices=("key", "account", "model"), default="key", help="group by this (default: key)"
    )
    parser.add_argument(
        "--window",
        action="append",
        choices=(*WINDOWS, ALL_TIME),
        help=f"window of time, may be repeated (default: {', '.join(DEFAULT_PERIOD)})",
    )
    parser.add_argument(
        "--merge",
        nargs="+",
        type=Path,
        metavar="FILE",
        default=(),
        help="add the ledger files of other machines; each request counts once",
    )
    parser.add_argument(
        "--savings", action="store_true", help="show what the cache and the flex tier have saved"
    )
    shape = parser.add_mutually_exclusive_group()
    shape.add_argument("--json", action="store_true", help="print JSON")
    shape.add_argument("--csv", action="store_true", help="print CSV")


def run(arguments: argparse.Namespace) -> int:
    import trio

    from qproxy.bootstrap.models import package_catalog
    from qproxy.ledger import LedgerError

    config, windows = configuration.load(path=arguments.config), arguments.window or DEFAULT_PERIOD
    try:
        rows = trio.run(_usage_rows, config, arguments.merge, arguments.by, windows, time.time())
    except LedgerError as error:
        print_error(str(error))
        return 1
    date = package_catalog().price_terms["date"]
    if arguments.json:
        print_result(json.dumps({"by": arguments.by, "prices_of": date, "usage": rows}, indent=1))
    elif arguments.csv:
        print_result(_csv(rows))
    else:
        for line in _table(rows, arguments.by, savings=arguments.savings):
            print_result(line)
        print_note(
            f"Costs are estimates in US dollars (list prices of {date}); unknown: requests without a price."
        )
    return 0


async def _usage_rows(
    config: configuration.Config, files: Sequence[Path], by: Any, windows: Sequence[str], now: float
) -> list[dict[str, Any]]:
    from qproxy.backends.ledgers import open_ledger_reader, open_merged_ledgers

    ledger = open_merged_ledgers(config, files) if files else open_ledger_reader(config)
    try:
        usage = await ledger.usage_by(by, windows, now)
    finally:
        await ledger.aclose()
    return [row for window in windows for row in _window_rows(usage[window], window, now)]


def _window_rows(usage: Sequence[Any], window: str, now: float) -> list[dict[str, Any]]:
    from qproxy.telemetry.log_format import printable

    since = WINDOWS[window].start(now) if window in WINDOWS else None
    return [
        {
            "window": window,
            "since": None if since is None else time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(since)),
            "name": printable(use.name),
            "requests": use.requests,
            "failed": use.failed,
            "prompt_tokens": use.prompt_tokens,
            "completion_tokens": use.completion_tokens,
            "cost_usd": None if use.known_cost is None else round(use.known_cost, 6),
            "unpriced": use.unpriced,
            "saved_usd": round(use.saved, 6) if use.known_cost is not None else None,
            **{unit: round(getattr(use, unit), 3) for unit in UNITS},
        }
        for use in usage
    ]


def _csv(rows: Sequence[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().rstrip("\n")


def _table(rows: Sequence[dict[str, Any]], by: str, *, savings: bool = False) -> list[str]:
    units = [unit for unit in UNITS if any(row[unit] for row in rows)]
    lines = [("window", "since (UTC)", by, "requests", "failed", "tokens in", "out", *units, "cost")]
    if savings:
        lines = [(*lines[0], "without", "saved")]
    for row in rows:
        since = "ever" if row["since"] is None else row["since"][:16].replace("T", " ")
        counts = (row[name] for name in ("requests", "failed", "prompt_tokens", "completion_tokens", *units))
        cells = (
            row["window"],
            since,
            row["name"] or "-",
            *(f"{count:,.15g}" for count in counts),
            _cost(row),
        )
        lines.append((*cells, *_savings(row)) if savings else cells)
    return format_table(lines, numbers=range(3, len(lines[0])), width=output_width())


def _cost(row: dict[str, Any]) -> str:
    if row["cost_usd"] is None:
        return "unknown"
    known = f"{row['cost_usd']:.4f}"
    return f"{known} + unknown" if row["unpriced"] else known


def _savings(row: dict[str, Any]) -> tuple[str, str]:
    """Return the cost without cache and flex, and what they have saved."""
    if row["cost_usd"] is None:
        return "unknown", "unknown"
    full, saved = row["cost_usd"] + row["saved_usd"], row["saved_usd"]
    return f"{full:.4f}", f"{saved:.4f} ({saved / full:.0%})" if full else f"{saved:.4f}"
