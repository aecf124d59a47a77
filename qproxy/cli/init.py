"""`qproxy init`: write a commented configuration file from three answers, and check it.

The answers come from flags, or from questions on a terminal. A file that exists is not changed.
"""

from __future__ import annotations

import argparse
import getpass
import json
import os
import sys
from dataclasses import dataclass

from qproxy import config as configuration
from qproxy.access.api_keys import ApiKeyStore
from qproxy.bootstrap.models import package_catalog
from qproxy.cli.help import DONE, HelpPage
from qproxy.cli.output import print_note, print_result
from qproxy.config.accounts import AccountConfig, ConfigError, resolve_account
from qproxy.config.urls import split_url

HELP = "write a configuration file from three questions, and check it"
PAGE = HelpPage(
    about="""Write a commented qproxy.toml from three answers: a DashScope API key, the base URL of your own
    Qwen server, and whether to serve other machines, for which an API key is created. Flags replace the
    questions. The file is readable by its owner only; one that exists is not changed. At the end, the result
    is checked.""",
    examples={
        "qproxy init": "answer three questions",
        "qproxy init --upstream http://127.0.0.1:8080/v1": "your own Qwen server, without questions",
        "qproxy init --key - --public < key.txt": "a key from standard input; serve other machines, too",
    },
    exits={**DONE, 1: "the file exists or cannot be written, or a check failed"},
    files={
        "qproxy.toml": "the file that is written, or that of --config",
        "$QPROXY_HOME/keys.json": "the API key that --public creates",
    },
)
TEMPLATE = """\
# Settings of qproxy, written by `qproxy init`. All settings: qproxy help configuration
# Reload a running server after a change: qproxy reload

host = {host}  # "0.0.0.0" serves other machines, which need an API key: qproxy keys create
port = 8787

# default_model = "{model}"  # for requests that name none
# aliases = {{ "gpt-*" = "{model}" }}  # model names of clients
# admin_key = "..."  # for the dashboard from other machines; at least 15 characters
"""
KEY_TABLE = """
[[accounts]]
name = "dashscope"
preset = {preset}  # region of the key: singapore, beijing, us or hongkong; or a plan: qproxy help accounts
key = {key}
"""
UPSTREAM_TABLE = """
[[accounts]]
name = "upstream"
kind = "openai_compatible"
base_url = {base_url}
# key = "..."  # if the server requires one
"""
PLAN_PREFIX, PLAN_PRESET, KEY_PRESET = "sk-sp-", "coding-plan-intl", "singapore"


@dataclass(frozen=True, slots=True)
class Answers:
    """The answers to the three questions."""

    key: str
    upstream: str
    public: bool

    def accounts(self) -> list[AccountConfig]:
        """Return the accounts. Raises ConfigError if they are invalid, or if there are none."""
        accounts = []
        if self.key:
            accounts.append(AccountConfig("dashscope", preset=self.preset, key=self.key))
        if self.upstream:
            accounts.append(AccountConfig("upstream", "openai_compatible", base_url=self.upstream))
        if not accounts:
            raise ConfigError("nothing to serve: pass --key or --upstream. To try it without: qproxy demo")
        return [resolve_account(account) for account in accounts]

    @property
    def preset(self) -> str:
        return PLAN_PRESET if self.key.startswith(PLAN_PREFIX) else KEY_PRESET

    def text(self) -> str:
        """Return the configuration file."""
        host = json.dumps("0.0.0.0" if self.public else "127.0.0.1")
        text = TEMPLATE.format(host=host, model=package_catalog().defaults["chat"])
        for account in self.accounts():
            if account.name == "dashscope":
                text += KEY_TABLE.format(preset=json.dumps(self.preset), key=json.dumps(account.key))
            else:
                text += UPSTREAM_TABLE.format(base_url=json.dumps(account.base_url))
        return text


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--key", help="DashScope API key; - reads it from standard input")
    parser.add_argument(
        "--upstream", metavar="URL", help="base URL of your own OpenAI-compatible Qwen server"
    )
    parser.add_argument(
        "--public", action="store_true", help="serve other machines, too, and create an API key"
    )
    parser.add_argument("--config", metavar="PATH", help="file to write (default: qproxy.toml)")
    parser.add_argument("--offline", action="store_true", help="make no connections in the check")


def run(arguments: argparse.Namespace) -> int:
    from qproxy.cli import check

    path = arguments.config or configuration.FILE
    if os.path.lexists(path):
        raise FileExistsError(f"{path} exists and was not changed; remove it, or name another with --config.")
    answers = _answers(arguments)
    _write(path, answers.text())
    try:
        print_result(f"Wrote {path}.")
        if answers.public:
            _create_key(path)
    except BaseException:  # so that the command can be repeated
        os.unlink(path)
        raise
    print_note("")
    code = check.run(
        argparse.Namespace(
            config=path, url=None, key=None, model=None, json=False, offline=arguments.offline, cost=False
        )
    )
    print_note(f"\nNext: qproxy serve{'' if arguments.config is None else f' --config {path}'}")
    return code


def _answers(arguments: argparse.Namespace) -> Answers:
    """Return the answers of the flags, or those of the questions if there are none."""
    if arguments.key is not None or arguments.upstream is not None:
        key = sys.stdin.readline() if arguments.key == "-" else arguments.key or ""
        return Answers(key.strip(), (arguments.upstream or "").strip(), arguments.public)
    if not sys.stdin.isatty():
        raise ConfigError("pass --key or --upstream, or run it on a terminal, where it asks.")
    try:
        key = getpass.getpass("DashScope API key, not shown (Enter for none): ").strip()
        upstream = _ask_upstream()
        public = arguments.public or input("Serve other machines, too? [y/N] ").strip().lower() in (
            "y",
            "yes",
        )
    except EOFError:
        raise ConfigError("the input ended; nothing was written.") from None
    return Answers(key, upstream, public)


def _ask_upstream() -> str:
    """Ask for a base URL until it is valid, or empty for none. Raises EOFError."""
    while (url := input("Base URL of your own Qwen server (Enter for none): ").strip()) and not split_url(
        url
    ):
        print_note("It must be http(s)://host[:port]/path, without a query or password.")
    return url


def _write(path: str, text: str) -> None:
    """Write a file that only its owner can read. Raises OSError, also if it exists."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:  # a full disk
        os.unlink(path)
        raise OSError(error.errno, error.strerror, path) from None


def _create_key(path: str) -> None:
    """Create and print the first API key, unless there is one."""
    import trio

    from qproxy.backends.shared_commands import with_api_keys

    config = configuration.load(path=path)
    if not config.api_keys:
        trio.run(with_api_keys, config, _create_first_key)


async def _create_first_key(store: ApiKeyStore) -> None:
    if store.list_keys():
        return
    key, secret = await store.create(name="first")
    print_note(f"Created the API key {key.id}. Save it now; it is not shown again:")
    print_result(secret)
