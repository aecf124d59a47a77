"""`qproxy accounts`: show the states of the accounts.

The states are those that the servers of this data directory last stored; no upstream is contacted.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence

import trio

from qproxy import config as configuration
from qproxy.accounts import report
from qproxy.accounts.shared_state import AccountState, StateStoreError
from qproxy.cli.help import CONFIGURATION, HelpPage
from qproxy.cli.output import format_table, print_error, print_result

COLUMNS = ("name", "kind", "plan", "host", "state", "requests", "failed", "last minute", "now")
HELP = "show the accounts and their states"
PAGE = HelpPage(
    about="""Show every configured account with the state that the servers of this data directory last stored:
    the reason, cooldowns, quotas, requests and failures. No upstream is contacted; `qproxy check` does
    that.""",
    examples={
        "qproxy accounts": "a table",
        "qproxy accounts --json | jq '.accounts[] | select(.state != \"ready\")'": "unavailable ones",
    },
    files={**CONFIGURATION, "$QPROXY_HOME/accounts.db": "the states of the accounts"},
)


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", metavar="PATH", help="configuration file with the accounts")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(arguments: argparse.Namespace) -> int:
    config, wall_clock = configuration.load(path=arguments.config), time.time()
    try:
        states = trio.run(_load, config)
    except StateStoreError as error:
        print_error(str(error))
        return 1
    rows = report.account_rows(config.all_accounts(), states, wall_clock)
    if arguments.json:
        print_result(json.dumps({"accounts": [row.to_json() for row in rows]}, indent=1, ensure_ascii=False))
    else:
        for line in accounts_table(rows, wall_clock):
            print_result(line)
    return 0


async def _load(config: configuration.Config) -> Mapping[str, AccountState]:
    from qproxy.backends.factory import open_account_state

    store = open_account_state(config)
    if store is None:
        return {}
    try:
        return await store.load()
    finally:
        await store.aclose()


def accounts_table(rows: Sequence[report.AccountRow], wall_clock: float) -> list[str]:
    """Return the rows as lines of a table, followed by remarks about single accounts."""
    cells = [COLUMNS] + [
        (
            row.name, row.kind, row.plan or "-", row.host or "-", row.message,
            str(row.requests), str(row.failures), str(row.last_minute), str(row.in_flight),
        )
        for row in rows
    ]  # fmt: skip
    return format_table(cells) + [line for row in rows for line in _notes(row, wall_clock)]


def _notes(row: report.AccountRow, wall_clock: float) -> list[str]:
    remarks = []
    if row.expires_at is not None:
        remarks.append(f"{row.name}: token expires {report.format_time(row.expires_at, wall_clock)}")
    if row.quota_reset_at is not None and row.quota is not None:
        remarks.append(f"{row.name}: quota resets {report.format_time(row.quota_reset_at, wall_clock)}")
    if row.quota is not None:
        remarks.append(f"{row.name}: {row.quota}")
    if row.last_error is not None and row.last_error_at is not None:
        remarks.append(
            f"{row.name}: last error {row.last_error}, {report.format_time(row.last_error_at, wall_clock)}"
        )
    return remarks
