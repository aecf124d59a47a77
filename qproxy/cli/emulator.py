"""`qproxy emulator`: serve the built-in Qwen emulator, and print the settings to use it.

The emulator and the identity server of Qwen accounts share one port; the printed text shows how to sign in,
to chat and to make either of them fail.
"""

from __future__ import annotations

import argparse
from functools import reduce

import trio

from qproxy.cli.arguments import port, seconds
from qproxy.cli.help import HelpPage
from qproxy.cli.output import print_result

HELP = "serve the built-in Qwen emulator and identity server, to try logins"
PAGE = HelpPage(
    about="""Serve the built-in Qwen emulator with the identity server of Qwen accounts, to try
    logins, chat and faults without an account. It prints the settings to use. The models fault-...
    and quirk-... reproduce faults of real servers.""",
    examples={
        "qproxy emulator": "serve it on port 8788",
        "qproxy emulator --token-lifetime 20": "with tokens that expire quickly",
        "qproxy emulator --assume cache_ttls='30m 12h'": "with another assumption (qproxy help emulator)",
    },
    files={},
    environment={},
)
HOW_TO = """Qwen emulator listening on {origin} (Ctrl+C to quit). To log in, in another terminal:

    export QPROXY_HOME=$(mktemp -d) QPROXY_OAUTH_HOSTS={origin}
    export QPROXY_OAUTH_DEVICE_URL={origin}/api/v1/oauth2/device/code
    export QPROXY_OAUTH_TOKEN_URL={origin}/api/v1/oauth2/token
    qproxy login
    qproxy serve

and in a third, to chat: curl http://127.0.0.1:8787/v1/chat/completions -H 'content-type: application/json' \\
    -d '{{"model": "{model}", "messages": [{{"role": "user", "content": "Hello"}}]}}'

Tokens expire after {lifetime:g} s; to expire them now: curl -X POST {origin}/emulator/expire
To make the identity server fail once: curl -d fault=html {origin}/emulator/next
(an unknown name lists the faults)."""


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--port", type=port, default=8788, help="port to listen on (default: 8788; 0 selects a free one)"
    )
    parser.add_argument(
        "--token-lifetime",
        type=seconds,
        default=120.0,
        metavar="SECONDS",
        help="lifetime of its tokens (default: 120)",
    )
    parser.add_argument(
        "--interval",
        type=seconds,
        metavar="SECONDS",
        help="polling interval to require (default: none, as Qwen)",
    )
    parser.add_argument(
        "--context",
        type=int,
        metavar="TOKENS",
        help="tokens (words) that a prompt may have; longer ones are rejected (default: no limit)",
    )
    parser.add_argument(
        "--assume",
        type=_assumption,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="change what is assumed where Qwen's documentation is silent; an unknown name lists all",
    )


def _assumption(text: str) -> str:
    """Return a valid assumption."""
    from qproxy.emulator.unverified import NATURAL

    try:
        NATURAL.assume(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def run(arguments: argparse.Namespace) -> int:
    trio.run(_serve, arguments)
    return 0


async def _serve(arguments: argparse.Namespace) -> None:
    from qproxy import http_server
    from qproxy.bootstrap.models import package_catalog
    from qproxy.emulator import Emulator, IdentityServer
    from qproxy.emulator.unverified import NATURAL

    facts = reduce(lambda known, text: known.assume(text), arguments.assume, NATURAL)
    identity = IdentityServer(token_lifetime=arguments.token_lifetime, interval=arguments.interval)
    emulator, stop = Emulator(identity=identity, facts=facts, context=arguments.context), trio.Event()
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
