"""`qproxy logout`: delete an account's tokens."""

from __future__ import annotations

import argparse

import trio

from qproxy import config as configuration
from qproxy.auth.credential_store import CredentialStore
from qproxy.cli.audit import current_actor, record_change
from qproxy.cli.help import CONFIGURATION, DONE, HelpPage
from qproxy.cli.login import select_account
from qproxy.cli.output import print_error, print_note, print_result
from qproxy.telemetry.audit import AuditEntry

HELP = "log out of a Qwen account: delete its tokens from this machine"
PAGE = HelpPage(
    about="""Delete the tokens of an account from this machine. Qwen offers no token revocation: copies of a
    token remain valid until it expires.""",
    examples={
        "qproxy logout": "log out of the only account",
        "qproxy logout --account work": "log out of this account",
    },
    exits={**DONE, 1: "the account is not logged in, or its file cannot be deleted"},
    files={**CONFIGURATION, "$QPROXY_HOME/accounts/NAME/oauth_creds.json": "the tokens"},
)


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--account",
        metavar="NAME",
        help="account to log out of (default: the only oauth account, otherwise qwen)",
    )
    parser.add_argument("--config", metavar="PATH", help="configuration file with the account")


def run(arguments: argparse.Namespace) -> int:
    from qproxy.backends.shared_commands import with_credentials

    config = configuration.load(path=arguments.config)
    account = select_account(config.accounts, arguments.account)
    location, removed = trio.run(with_credentials, config, account, _remove)
    if not removed:
        print_error(f"account {account.name} is not logged in (no tokens in {location}).")
        return 1
    record_change(config, AuditEntry(current_actor(), "account.logout", account.name, "tokens deleted"))
    what = location if config.shared_state is None else f"its tokens in {location}"
    print_result(f"Logged out of account {account.name}; deleted {what}.")
    if account.credentials is not None:
        print_note("Other programs that use this file are logged out as well.")
    print_note("Qwen offers no token revocation: copies of the token remain valid until it expires.")
    return 0


async def _remove(store: CredentialStore) -> tuple[str, bool]:
    return store.location, await store.remove()
