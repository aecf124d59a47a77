"""`qproxy logout`: forget an account's tokens."""

from __future__ import annotations

import argparse

import trio

from qproxy import config as configuration
from qproxy.cli.help import CONFIGURATION, DONE, HelpPage
from qproxy.cli.login import select_account
from qproxy.cli.output import print_error, print_note, print_result

HELP = "sign out of a Qwen account: remove its tokens from this machine"
PAGE = HelpPage(
    about="""Remove the tokens of a signed-in account from this machine. Qwen names no way to revoke a token: one that was copied elsewhere
    works until it ends.""",
    examples={"qproxy logout": "sign out of the only account", "qproxy logout --account work": "of this one"},
    exits={**DONE, 1: "nobody is signed in, or the file cannot be removed"},
    files={**CONFIGURATION, "$QPROXY_HOME/accounts/NAME/oauth_creds.json": "the tokens"},
)


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--account", metavar="NAME", help="which account (default: the only one, else qwen)")
    parser.add_argument("--config", metavar="PATH", help="configuration file that may name the account")


def run(arguments: argparse.Namespace) -> int:
    from qproxy.backends.factory import credential_opener

    config = configuration.load(path=arguments.config)
    account = select_account(config.accounts, arguments.account)
    store = credential_opener(config)(account)
    if not trio.run(store.remove):
        print_error(f"nobody is signed in to the account {account.name} ({store.location}).")
        return 1
    print_result(f"Signed out: {store.location} is gone.")
    if account.credentials is not None:
        print_note("Other programs that use this file are signed out as well.")
    print_note("Qwen names no way to revoke a token: one that was copied elsewhere works until it ends.")
    return 0
