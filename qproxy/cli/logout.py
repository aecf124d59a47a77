"""`qproxy logout`: forget an account's tokens."""

from __future__ import annotations

import argparse

import trio

from qproxy import config as configuration
from qproxy.cli.help import CONFIGURATION, DONE, Page
from qproxy.cli.login import chosen
from qproxy.cli.output import complain, remark, say

HELP = "sign out of a Qwen account: remove its tokens from this machine"
PAGE = Page(
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
    from qproxy.bootstrap import auth as signing

    config = configuration.load(path=arguments.config)
    account = chosen(config.accounts, arguments.account)
    source = signing.source(account, config)
    if not trio.run(source.keeper.sign_out):
        complain(f"nobody is signed in to the account {account.name} ({source.keeper.file.path}).")
        return 1
    say(f"Signed out: {source.keeper.file.path} is gone.")
    if account.credentials is not None:
        remark("Other programs that use this file are signed out as well.")
    remark("Qwen names no way to revoke a token: one that was copied elsewhere works until it ends.")
    return 0
