"""`qproxy shared`: what machines share on the server of `shared_state`, and moves to it and from it.

`backends.shared_operations` and `backends.shared_commands` act; here are the words.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import TYPE_CHECKING

import trio

from qproxy import config as configuration
from qproxy.auth.credential_store import StorageError
from qproxy.cli.audit import current_actor, record_change
from qproxy.cli.help import CONFIGURATION, DONE, HelpPage
from qproxy.cli.output import format_table, output_width, print_error, print_result
from qproxy.config import Config
from qproxy.config.accounts import AccountConfig
from qproxy.telemetry.audit import AuditEntry

if TYPE_CHECKING:
    from qproxy.backends.shared_operations import Inventory

HELP = "show what machines share in Valkey or Redis, and move data there and back"
PAGE = HelpPage(
    about="""Work on the server of the setting shared_state. `import` adds this machine's API keys to it, what
    the usage ledger knows of budgets, and moves its logins there; `export` adds the server's keys to this
    machine's file and, with --logins, moves the logins here, so that no other machine has them. `reseal`
    encrypts what is there with the first key of shared_state_key_file. All may be repeated.""",
    examples={
        "qproxy shared show": "list the processes that it has seen, and its keys by kind",
        "qproxy shared import": "begin to share, on each machine once",
        "qproxy shared export --logins": "before shared_state is removed from the settings",
        "qproxy shared reseal": "after a new first line in shared_state_key_file; the old key may go then",
    },
    exits={**DONE, 1: "the server cannot be used, or records that no key opens remain"},
    files={**CONFIGURATION, "$QPROXY_HOME": "the data directory: keys.json, accounts"},
)


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", metavar="PATH", help="configuration file that names the server")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    show = actions.add_parser("show", help="show processes, and keys and memory by kind")
    show.add_argument("--json", action="store_true", help="print JSON")
    actions.add_parser("import", help="add this machine's keys and budgets, and move its logins")
    export = actions.add_parser("export", help="add the server's keys to this machine's file")
    export.add_argument("--logins", action="store_true", help="move the logins to this machine, too")
    actions.add_parser("reseal", help="encrypt all records with the first key")


def run(arguments: argparse.Namespace) -> int:
    from qproxy.backends.factory import SharedStateFailure

    config = configuration.load(path=arguments.config)
    try:
        if arguments.action == "show":
            return _show(config, as_json=arguments.json)
        if arguments.action == "export":
            return _export(config, logins=arguments.logins)
        return _import(config) if arguments.action == "import" else _reseal(config)
    except SharedStateFailure as error:
        print_error(str(error))
        return 1


def _show(config: Config, *, as_json: bool) -> int:
    from qproxy.backends.shared_operations import read_inventory

    found = trio.run(read_inventory, config)
    for line in [json.dumps(asdict(found))] if as_json else _inventory_lines(found, time.time()):
        print_result(line)
    return 0


def _inventory_lines(found: Inventory, now: float) -> list[str]:
    versions = ", ".join(sorted(set(found.report.versions)))
    lines = [f"{found.address}, version {versions}", ""]
    rows = [("machine", "process", "version", "since", "last beat", "in flight")]
    for each in sorted(found.report.replicas, key=lambda each: (each.machine, each.pid)):
        since = time.strftime("%Y-%m-%d %H:%M", time.gmtime(each.since))
        beat = f"{max(0.0, now - (each.beat_at or now)):.0f} s ago"
        rows.append((each.machine, str(each.pid), each.version, since, beat, str(each.in_flight)))
    lines += format_table(rows, numbers=(1, 5), width=output_width()) if len(rows) > 1 else ["No process."]
    kinds = [("kind", "keys", "bytes")]
    kinds += [(kind, f"{size.keys:,}", f"{size.bytes:,}") for kind, size in found.kinds.items()]
    return [*lines, "", *format_table(kinds, numbers=(1, 2), width=output_width())]


def _import(config: Config) -> int:
    from qproxy.backends.shared_commands import import_api_keys, import_credentials
    from qproxy.backends.shared_operations import import_budgets

    new, count = trio.run(import_api_keys, config)
    budgets = trio.run(import_budgets, config)
    print_result(f"Imported {new} of {count} API keys, and the usage of {budgets} keys with budgets.")
    _record(config, "shared.import", f"{new} API keys")
    return _for_each_login(config, import_credentials, "Moved the login of {} to the server.")


def _export(config: Config, *, logins: bool) -> int:
    from qproxy.backends.shared_commands import export_credentials
    from qproxy.backends.shared_operations import export_api_keys

    new, count = trio.run(export_api_keys, config)
    print_result(f"Exported {new} of {count} API keys to {config.keys_file}.")
    _record(config, "shared.export", f"{new} API keys")
    if not logins:
        return 0
    return _for_each_login(config, export_credentials, "Moved the login of {} to this machine.")


def _reseal(config: Config) -> int:
    from qproxy.backends.shared_commands import reseal_credentials
    from qproxy.backends.shared_operations import reseal

    code = _for_each_login(config, reseal_credentials, "Encrypted the login of {} again.")
    found = trio.run(reseal, config)
    print_result(f"Encrypted {found.sealed} records again; {found.current} had the first key already.")
    _record(config, "shared.reseal", f"{found.sealed} records")
    if found.failed:
        print_error(
            f"No key of shared_state_key_file opens {found.failed} records: add the key they were made with."
        )
        return 1
    return code


def _for_each_login(
    config: Config, act: Callable[[Config, AccountConfig], Awaitable[bool]], message: str
) -> int:
    """Act on the tokens of each account with a login; return 1 if that failed for one of them."""
    code = 0
    for account in config.accounts:
        if account.kind == "oauth":
            try:
                if trio.run(act, config, account):
                    print_result(message.format(account.name))
            except StorageError as error:
                print_error(str(error))
                code = 1
    return code


def _record(config: Config, action: str, detail: str) -> None:
    record_change(config, AuditEntry(current_actor(), action, "shared_state", detail))
