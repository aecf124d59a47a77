"""`qproxy login`: log in to a Qwen account with the device code flow.

This module selects the account and shows the page, the code, a QR code and a countdown. The flow itself is
`auth.device_flow`, which the server's admin routes run as well.
"""

from __future__ import annotations

import argparse
import io
import signal
import sys
import webbrowser

import trio

from qproxy import config as configuration
from qproxy.auth import OAuthSource
from qproxy.auth.credential_store import CredentialStore
from qproxy.auth.device_flow import DeviceFlow, LoginProgress
from qproxy.cli.audit import current_actor, record_change
from qproxy.cli.help import CONFIGURATION, DONE, HelpPage
from qproxy.cli.output import print_error, print_note, print_progress, print_result
from qproxy.config.accounts import FREE_TIER_ENDED, AccountConfig, ConfigError, resolve_account
from qproxy.telemetry.audit import AuditEntry

HELP = "log in to a Qwen account"
PAGE = HelpPage(
    about="""Log in to a Qwen account with the device code flow: a page opens in the browser (or its URL is
    shown, with a QR code), you approve, and the tokens are saved. A running server picks them up and
    refreshes them.

    The free tier behind Qwen accounts ended on 2026-04-15: login may work while chat is refused.""",
    examples={
        "qproxy login": "log in to the only oauth account, otherwise to one named qwen",
        "qproxy login --account work --no-browser": "on a machine without a browser",
    },
    exits={**DONE, 130: "interrupted with Ctrl+C; nothing was saved"},
    files={
        **CONFIGURATION,
        "$QPROXY_HOME/accounts/NAME/oauth_creds.json": "the tokens, unless the account's credentials names "
        "another file",
    },
)
DEFAULT_NAME = "qwen"
TEXT_BROWSERS = ("lynx", "links", "elinks", "w3m", "www-browser")
INTERRUPTED = 130


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--account",
        metavar="NAME",
        help="account to log in to (default: the only oauth account, otherwise qwen)",
    )
    parser.add_argument("--no-browser", action="store_true", help="show the URL without opening a browser")
    parser.add_argument("--config", metavar="PATH", help="configuration file with the account")


def run(arguments: argparse.Namespace) -> int:
    from qproxy.backends.shared_commands import with_credentials
    from qproxy.bootstrap import auth

    config = configuration.load(path=arguments.config)
    account = select_account(config.accounts, arguments.account)
    print_note(f"Note: {FREE_TIER_ENDED}")

    async def log_in(store: CredentialStore) -> tuple[str, LoginProgress]:
        source = auth.build_oauth_source(account, config, store)
        return store.location, await _log_in(source, not arguments.no_browser)

    location, progress = trio.run(with_credentials, config, account, log_in)
    if progress.state == "cancelled":
        print_error("interrupted; nothing was saved.")
        return INTERRUPTED
    if progress.state != "signed_in":
        print_error(progress.message)
        return 1
    record_change(config, AuditEntry(current_actor(), "account.login", account.name, "tokens saved"))
    print_result(f"Logged in to account {account.name}; tokens saved in {location}.")
    if (config.accounts or config.shared_state) and account not in config.accounts:
        print_note(
            f'To serve it, add to the configuration: [[accounts]] name = "{account.name}" kind = "oauth"'
        )
    return 0


def select_account(accounts: tuple[AccountConfig, ...], name: str | None) -> AccountConfig:
    """Return the account to log in to or out of, a new one if it is not configured. Raises ConfigError."""
    candidates = [account for account in accounts if account.kind == "oauth"]
    if name is None and len(candidates) > 1:
        names = ", ".join(account.name for account in candidates)
        raise ConfigError(f"--account is required: there are several oauth accounts ({names}).")
    if name is None:
        return candidates[0] if candidates else AccountConfig(DEFAULT_NAME, kind="oauth")
    for account in accounts:
        if account.name == name and account.kind != "oauth":
            raise ConfigError(f"--account: {name!r} is not an oauth account; it uses a key.")
        if account.name == name:
            return account
    account = AccountConfig(name, kind="oauth")
    resolve_account(account)  # a name such as ../x leads out of the data directory
    return account


async def _log_in(source: OAuthSource, browser: bool) -> LoginProgress:
    flow = source.start_login()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_run_until_interrupted, nursery.cancel_scope)
        nursery.start_soon(flow.run)
        await flow.started.wait()
        if not flow.progress.finished:
            await _print_code(flow.progress, browser and sys.stdout.isatty())
            await _wait_until_finished(flow)
        nursery.cancel_scope.cancel()
    if sys.stderr.isatty():
        print_progress("")
    return flow.progress


async def _run_until_interrupted(scope: trio.CancelScope) -> None:
    """Cancel the scope at SIGINT or SIGTERM; tokens just granted are still saved."""
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async for _ in signals:
            scope.cancel()


async def _print_code(progress: LoginProgress, browser: bool) -> None:
    print_result(f"Open this page and approve the login:\n\n    {progress.verification_uri}\n")
    if progress.user_code:
        print_result(f"Check that the page shows the code {progress.user_code}.")
    if sys.stdout.isatty():
        print_result(qr_code(progress.verification_uri))
    if browser and _has_browser():
        with trio.move_on_after(5):
            await trio.to_thread.run_sync(webbrowser.open, progress.verification_uri, abandon_on_cancel=True)


def qr_code(text: str) -> str:
    """Return a text as a QR code of half blocks."""
    import segno  # late: only a terminal needs it

    drawn = io.StringIO()
    segno.make(text, error="l", micro=False).terminal(drawn, compact=True, border=2)
    return drawn.getvalue()


def _has_browser() -> bool:
    """Return whether there is a browser that does not run in the terminal."""
    try:
        return getattr(webbrowser.get(), "name", "") not in TEXT_BROWSERS
    except webbrowser.Error:
        return False


async def _wait_until_finished(flow: DeviceFlow) -> None:
    """Show a countdown on a terminal, otherwise a line for each change of state."""
    message = ""
    while not flow.progress.finished:
        progress = flow.progress
        if sys.stderr.isatty():
            left = round(progress.seconds_left)
            print_progress(f"{progress.message} {left // 60}:{left % 60:02d} left.")
        elif progress.message != message:
            print_note(progress.message)
            message = progress.message
        with trio.move_on_after(1):
            await flow.finished.wait()
