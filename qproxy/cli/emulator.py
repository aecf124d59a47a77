"""`qproxy emulator`: a Qwen server to play with, and what to set to use it."""

from __future__ import annotations

import argparse

import trio

from qproxy.cli.help import HelpPage
from qproxy.cli.output import print_result

HELP = "serve the built-in Qwen emulator alone, with its identity server, to try signing in"
PAGE = HelpPage(
    about="""Serve the built-in Qwen emulator alone, with the identity server of Qwen accounts, to try signing in, chat and faults without
    an account. It prints what to set to use it. The models fault-... and quirk-... answer with what servers do wrong.""",
    examples={
        "qproxy emulator": "serve it on port 8788",
        "qproxy emulator --token-lifetime 20": "with tokens that must be renewed all the time",
    },
    files={},
    environment={},
)
HOW_TO = """The Qwen emulator serves {origin} until Ctrl-C. To sign in to it, chat and sign out, in another terminal:

    export QPROXY_HOME=$(mktemp -d) QPROXY_OAUTH_HOSTS={origin}
    export QPROXY_OAUTH_DEVICE_URL={origin}/api/v1/oauth2/device/code
    export QPROXY_OAUTH_TOKEN_URL={origin}/api/v1/oauth2/token
    qproxy login
    qproxy serve

and in a third: curl http://127.0.0.1:8787/v1/chat/completions -H 'content-type: application/json' \\
    -d '{{"model": "{model}", "messages": [{{"role": "user", "content": "Hello"}}]}}'

Tokens last {lifetime:g} s; to end them now: curl -X POST {origin}/emulator/expire
What the identity server does wrong next: curl -d fault=html {origin}/emulator/next (a wrong name lists them)."""


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--port", type=int, default=8788, help="port to listen on (default 8788; 0 takes a free one)"
    )
    parser.add_argument(
        "--token-lifetime",
        type=float,
        default=120.0,
        metavar="SECONDS",
        help="how long its tokens last (default 120)",
    )
    parser.add_argument(
        "--interval", type=float, metavar="SECONDS", help="between polls (default: as Qwen, unsaid)"
    )


def run(arguments: argparse.Namespace) -> int:
    trio.run(_serve, arguments)
    return 0


async def _serve(arguments: argparse.Namespace) -> None:
    from qproxy import http_server
    from qproxy.bootstrap.models import package_catalog
    from qproxy.emulator import Emulator, IdentityServer

    identity = IdentityServer(token_lifetime=arguments.token_lifetime, interval=arguments.interval)
    emulator, stop = Emulator(identity=identity), trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(http_server.wait_for_signal, stop, print_result)
        await nursery.start(emulator.serve, arguments.port)
        print_result(
            HOW_TO.format(
                origin=emulator.origin,
                lifetime=arguments.token_lifetime,
                model=package_catalog().defaults["chat"],
            )
        )
        await stop.wait()
        nursery.cancel_scope.cancel()
