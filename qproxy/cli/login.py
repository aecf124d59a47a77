"""`qproxy login`: sign in to a Qwen account by the device flow.

Here: which account, and what the person sees (the page, the code, a QR code, a countdown).  The flow itself is
`auth.device`, and the server's admin routes run the same one.
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
from qproxy.auth.device_flow import DeviceFlow, Progress
from qproxy.cli.help import CONFIGURATION, DONE, Page
from qproxy.cli.output import complain, remark, remark_over, say
from qproxy.config.accounts import FREE_TIER_ENDED, AccountConfig, ConfigError

HELP = "sign in to a Qwen account"
PAGE = Page(
    about="""Sign in to a Qwen account by the device flow: a page opens in the browser (or is shown, with a QR code), you approve, and the
    tokens are saved. A running server takes them up by itself and renews them.

    The free tier behind Qwen accounts ended on 2026-04-15: signing in may work while chat is refused.""",
    examples={
        "qproxy login": "sign in to the only account, else to one called qwen",
        "qproxy login --account work --no-browser": "on a machine without a browser",
    },
    exits={**DONE, 130: "stopped with Ctrl-C; nothing was saved"},
    files={
        **CONFIGURATION,
        "$QPROXY_HOME/accounts/NAME/oauth_creds.json": "the tokens, or where the account's credentials says",
    },
)
DEFAULT_NAME = "qwen"
TEXT_BROWSERS = ("lynx", "links", "elinks", "w3m", "www-browser")
INTERRUPTED = 130


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--account", metavar="NAME", help="which account (default: the only one, else qwen)")
    parser.add_argument("--no-browser", action="store_true", help="do not open the page, only show it")
    parser.add_argument("--config", metavar="PATH", help="configuration file that may name the account")


def run(arguments: argparse.Namespace) -> int:
    from qproxy.bootstrap import auth as signing

    config = configuration.load(path=arguments.config)
    account = chosen(config.accounts, arguments.account)
    source = signing.source(account, config)
    remark(f"Note: {FREE_TIER_ENDED}")
    progress = trio.run(_sign_in, source, not arguments.no_browser)
    if progress.state == "cancelled":
        complain("stopped; nothing was saved.")
        return INTERRUPTED
    if progress.state != "signed_in":
        complain(progress.words)
        return 1
    say(f"Signed in: account {account.name}, in {source.keeper.file.path}.")
    if config.accounts and account not in config.accounts:
        remark(f'To serve it, add to the configuration: [[accounts]] name = "{account.name}" kind = "oauth"')
    return 0


def chosen(accounts: tuple[AccountConfig, ...], name: str | None) -> AccountConfig:
    """The account to sign in or out; one that is not configured is made."""
    candidates = [account for account in accounts if account.kind == "oauth"]
    if name is None and len(candidates) > 1:
        names = ", ".join(account.name for account in candidates)
        raise ConfigError(f"--account: there are several accounts to sign in to: {names}.")
    if name is None:
        return candidates[0] if candidates else AccountConfig(DEFAULT_NAME, kind="oauth")
    for account in accounts:
        if account.name == name and account.kind != "oauth":
            raise ConfigError(f"--account: the account {name!r} has a key and is not signed in.")
        if account.name == name:
            return account
    return AccountConfig(name, kind="oauth")


async def _sign_in(source: OAuthSource, browser: bool) -> Progress:
    flow = source.flow()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_until_interrupted, nursery.cancel_scope)
        nursery.start_soon(flow.run)
        await flow.begun.wait()
        if not flow.progress.over:
            await _show(flow.progress, browser and sys.stdout.isatty())
            await _until_over(flow)
        nursery.cancel_scope.cancel()
    if sys.stderr.isatty():
        remark_over("")
    return flow.progress


async def _until_interrupted(scope: trio.CancelScope) -> None:
    """Let Ctrl-C be an orderly end: tokens that have just been granted are still saved."""
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async for _ in signals:
            scope.cancel()


async def _show(progress: Progress, browser: bool) -> None:
    say(f"Open this page and approve:\n\n    {progress.verification_uri}\n")
    if progress.user_code:
        say(f"The code there must be {progress.user_code}.")
    if sys.stdout.isatty():
        say(qr_code(progress.verification_uri))
    if browser and _graphical():
        with trio.move_on_after(5):
            await trio.to_thread.run_sync(webbrowser.open, progress.verification_uri, abandon_on_cancel=True)


def qr_code(text: str) -> str:
    """A text as a QR code of half blocks."""
    import segno  # late: only a terminal needs it

    drawn = io.StringIO()
    segno.make(text, error="l", micro=False).terminal(drawn, compact=True, border=2)
    return drawn.getvalue()


def _graphical() -> bool:
    """Whether there is a browser that would not take over the terminal."""
    try:
        return getattr(webbrowser.get(), "name", "") not in TEXT_BROWSERS
    except webbrowser.Error:
        return False


async def _until_over(flow: DeviceFlow) -> None:
    """Count down in the terminal; elsewhere say what changes."""
    said = ""
    while not flow.progress.over:
        progress = flow.progress
        if sys.stderr.isatty():
            left = round(progress.left)
            remark_over(f"{progress.words} {left // 60}:{left % 60:02d} left.")
        elif progress.words != said:
            remark(progress.words)
            said = progress.words
        with trio.move_on_after(1):
            await flow.ended.wait()
