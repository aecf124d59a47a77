"""`qproxy accounts`: show the states of the accounts, end their cooldowns, forget learned rules.

The states are those that the servers of this data directory last stored; no upstream is contacted.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence

import trio

from qproxy import config as configuration
from qproxy.accounts import report
from qproxy.accounts.condition import format_time
from qproxy.accounts.shared_state import AccountState, AccountStateDelta, AccountStateStore, StateStoreError
from qproxy.cli.audit import current_actor, record_change
from qproxy.cli.help import CONFIGURATION, HelpPage
from qproxy.cli.output import format_table, output_width, print_error, print_result, wrap
from qproxy.config.accounts import ConfigError
from qproxy.config.parsing import suggestion
from qproxy.telemetry.audit import AuditEntry

COLUMNS = ("name", "kind", "plan", "host", "state", "requests", "failed", "last minute", "now")
HELP = "show the accounts and their states, end a cooldown, forget learned rules"
PAGE = HelpPage(
    about="""Show every configured account with the state that the servers of this data directory last stored:
    the reason, cooldowns, quotas, requests, failures and learned rules. No upstream is contacted;
    `qproxy check` does that.

    `qproxy accounts wake NAME` ends an account's cooldowns, once its quota was topped up or its key was
    replaced: running servers use it again within a second.

    `qproxy accounts forget-rules NAME` forgets the request rules that an account's rejections have taught:
    after an update of its server they may be unnecessary.""",
    examples={
        "qproxy accounts": "a table",
        "qproxy accounts --json | jq '.accounts[] | select(.state != \"ready\")'": "those that do not work",
        "qproxy accounts wake one": "use the account `one` again at once",
        "qproxy accounts forget-rules vllm": "send requests to `vllm` without learned rules again",
    },
    files={**CONFIGURATION, "$QPROXY_HOME/accounts.db": "the states of the accounts"},
)


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", metavar="PATH", help="configuration file with the accounts")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    actions = parser.add_subparsers(dest="action", metavar="ACTION")
    wake = actions.add_parser("wake", help="end the cooldowns of an account")
    wake.add_argument("name", metavar="NAME", help="name of the account")
    forget = actions.add_parser("forget-rules", help="forget the learned request rules of an account")
    forget.add_argument("name", metavar="NAME", help="name of the account")


def run(arguments: argparse.Namespace) -> int:
    config, wall_clock = configuration.load(path=arguments.config), time.time()
    if arguments.action == "wake":
        return _wake(config, arguments.name, wall_clock)
    if arguments.action == "forget-rules":
        return _forget_rules(config, arguments.name)
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


def _wake(config: configuration.Config, name: str, now: float) -> int:
    """End an account's cooldowns for all servers of the data directory."""
    delta = AccountStateDelta(name, woken_at=now, quota=(None,))
    done = f"Ended the cooldowns of {name}. Running servers use it again within a second."
    return _change(config, name, "account.wake", lambda _: delta, done)


def _forget_rules(config: configuration.Config, name: str) -> int:
    """Forget an account's learned rules for all servers of the data directory."""

    def forget(state: AccountState) -> AccountStateDelta:
        return AccountStateDelta(name, learned_rules=dict.fromkeys(state.learned_rules))

    done = f"Forgot the learned rules of {name}. Running servers follow within a second."
    return _change(config, name, "account.forget_rules", forget, done)


def _change(
    config: configuration.Config,
    name: str,
    action: str,
    change: Callable[[AccountState], AccountStateDelta],
    done: str,
) -> int:
    """Publish a change of an account's state (`action` in the audit log), and print that it is done."""
    known = {account.name: account for account in config.all_accounts()}
    if name not in known:
        raise ConfigError(f"unknown account {name!r}.{suggestion(name, known)}")
    try:
        is_shared = trio.run(_publish, config, known[name].identity, change)
    except StateStoreError as error:
        print_error(str(error))
        return 1
    if not is_shared:
        print_error(
            "account states are not stored (account_state_file): use the button of the dashboard instead."
        )
        return 1
    record_change(config, AuditEntry(current_actor(), action, name))
    print_result(done)
    return 0


async def _publish(
    config: configuration.Config, identity: str, change: Callable[[AccountState], AccountStateDelta]
) -> bool:
    """Publish what happened to an account; return whether there is a store for it."""
    from qproxy.backends.shared_commands import with_account_states

    async def publish(store: AccountStateStore) -> bool:
        state = (await store.load([identity])).get(identity, AccountState())
        await store.exchange({identity: change(state)})
        return True

    return bool(await with_account_states(config, publish))


async def _load(config: configuration.Config) -> Mapping[str, AccountState]:
    from qproxy.backends.shared_commands import with_account_states

    identities = [account.identity for account in config.all_accounts()]
    return await with_account_states(config, lambda store: store.load(identities)) or {}


def accounts_table(rows: Sequence[report.AccountRow], wall_clock: float) -> list[str]:
    """Return the rows as lines of a table, followed by remarks about single accounts."""
    cells = [COLUMNS] + [
        (
            row.name, row.kind, row.plan or "-", row.host or "-", row.state.replace("_", " "),
            str(row.requests), str(row.failures), str(row.last_minute), str(row.in_flight),
        )
        for row in rows
    ]  # fmt: skip
    width = output_width()
    notes = [line for row in rows for note in _notes(row, wall_clock) for line in wrap(note, width)]
    return format_table(cells, width=width) + notes


def _notes(row: report.AccountRow, wall_clock: float) -> list[str]:
    remarks = [] if row.message == row.state else [f"{row.name}: {row.message}"]
    if row.expires_at is not None:
        remarks.append(f"{row.name}: token expires {format_time(row.expires_at, wall_clock)}")
    if row.quota_reset_at is not None and row.quota is not None:
        remarks.append(f"{row.name}: quota resets {format_time(row.quota_reset_at, wall_clock)}")
    if row.quota is not None:
        remarks.append(f"{row.name}: {row.quota}")
    for model, rules in row.learned_rules.items():
        remarks.append(f"{row.name}: learned for {model}: {', '.join(rules)}")
    if row.last_error is not None and row.last_error_at is not None:
        remarks.append(
            f"{row.name}: last error {row.last_error}, {format_time(row.last_error_at, wall_clock)}"
        )
    return remarks
