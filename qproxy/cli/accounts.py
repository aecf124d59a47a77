"""`qproxy accounts`: how your accounts are doing."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

from qproxy import config as configuration
from qproxy.accounts import report as overview
from qproxy.accounts.shared_state import BoardError
from qproxy.backends.local.account_state import read
from qproxy.cli.help import CONFIGURATION, Page
from qproxy.cli.output import complain, in_columns, say

COLUMNS = ("name", "kind", "plan", "host", "state", "requests", "failed", "last minute", "now")
HELP = "show how your accounts are doing"
PAGE = Page(
    about="""Show every account of the configuration, with what the servers of this data directory last wrote about it: its state and
    its reason, cool-downs, quotas, requests and failures. Nobody is asked; `qproxy check` asks.""",
    examples={
        "qproxy accounts": "a table",
        "qproxy accounts --json | jq '.accounts[] | select(.state != \"ready\")'": "those that cannot serve now",
    },
    files={**CONFIGURATION, "$QPROXY_HOME/accounts.db": "what is known of the accounts"},
)


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", metavar="PATH", help="configuration file that names the accounts")
    parser.add_argument("--json", action="store_true", help="one JSON object, for programs")


def run(arguments: argparse.Namespace) -> int:
    config, wall = configuration.load(path=arguments.config), time.time()
    try:
        standings = read(Path(config.accounts_file)) if config.accounts_file else {}
    except BoardError as error:
        complain(str(error))
        return 1
    rows = overview.rows(config.all_accounts(), standings, wall)
    if arguments.json:
        say(json.dumps({"accounts": [row.fields() for row in rows]}, indent=1, ensure_ascii=False))
    else:
        for line in table(rows, wall):
            say(line)
    return 0


def table(rows: Sequence[overview.Row], wall: float) -> list[str]:
    """The rows, a line each, and below them what there is to say about single ones."""
    cells = [COLUMNS] + [
        (
            row.name, row.kind, row.plan or "-", row.host or "-", row.words,
            str(row.requests), str(row.failures), str(row.last_minute), str(row.in_flight),
        )
        for row in rows
    ]  # fmt: skip
    return in_columns(cells) + [line for row in rows for line in _remarks(row, wall)]


def _remarks(row: overview.Row, wall: float) -> list[str]:
    remarks = []
    if row.expires_at is not None:
        remarks.append(f"{row.name}: the token in use ends {overview.moment(row.expires_at, wall)}")
    if row.quota_reset_at is not None and row.quota is not None:
        remarks.append(f"{row.name}: the quota is expected back {overview.moment(row.quota_reset_at, wall)}")
    if row.quota is not None:
        remarks.append(f"{row.name}: {row.quota}")
    if row.last_error is not None and row.last_error_at is not None:
        remarks.append(f"{row.name}: last error {row.last_error}, {overview.moment(row.last_error_at, wall)}")
    return remarks
