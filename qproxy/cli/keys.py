"""`qproxy keys`: manage the API keys of clients.

The command only changes the key store; a running server applies the change by itself.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from typing import Any

from qproxy import config as configuration
from qproxy.access import api_keys
from qproxy.access.api_keys import ApiKeyStore
from qproxy.cli.arguments import count
from qproxy.cli.audit import current_actor, record_change
from qproxy.cli.help import CONFIGURATION, HelpPage
from qproxy.cli.output import format_table, output_width, print_note, print_result
from qproxy.config.accounts import ConfigError
from qproxy.limits.windows import WINDOWS

HELP = "create, list and revoke API keys for clients"
PAGE = HelpPage(
    about="""Create, list and revoke the API keys that your clients send. A key is printed once and stored
    only as its SHA-256. A running server applies a change from its next request; with the setting
    shared_state, those of all machines within about a second. Each action has its own
    --help.""",
    examples={
        "qproxy keys create --name bob --rpm 60 --models 'qwen-*' --expires 90d": "create a key with limits",
        "qproxy keys create --budget-requests month=1000 --budget-tokens 5h=200000": "set budgets",
        "qproxy keys create --name team --budget-usd month=20": "limit what a key may cost",
        "qproxy keys list": "show all keys, without their secrets",
        "qproxy keys revoke bob": "revoke a key",
    },
    files={
        **CONFIGURATION,
        "$QPROXY_HOME/keys.json": "the keys, unless the setting keys_file names another file, or "
        "shared_state a server",
    },
)

REJECTED = "A running server rejects it from its next request"


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", metavar="PATH", help="configuration file that may name keys_file")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    create = actions.add_parser("create", help="create a key; it is shown only once")
    create.add_argument("--name", default="", help="name of the key in lists and logs")
    create.add_argument("--rpm", type=count, help="requests per minute")
    create.add_argument("--tpm", type=count, help="tokens per minute, input and output")
    create.add_argument(
        "--models", default="", help="patterns of the models that it may use, comma-separated"
    )
    for unit in ("requests", "tokens"):
        create.add_argument(
            f"--budget-{unit}",
            action="append",
            default=[],
            type=_budget,
            metavar="WINDOW=COUNT",
            help=f"{unit} per window ({', '.join(WINDOWS)}); may be repeated",
        )
    create.add_argument(
        "--budget-usd",
        action="append",
        default=[],
        type=_money,
        metavar="WINDOW=DOLLARS",
        help="US dollars, estimated, per window; models without a known price are refused "
        "(setting unpriced_models)",
    )
    create.add_argument("--expires", metavar="WHEN", help="a duration (12h, 30d) or a date (2027-01-31, UTC)")
    actions.add_parser("list", help="show all keys")
    revoke = actions.add_parser("revoke", help="revoke a key")
    revoke.add_argument("key", help="ID or name of the key")


def _budget(text: str) -> tuple[str, int]:
    window, _, number = text.partition("=")
    if window not in WINDOWS:
        raise argparse.ArgumentTypeError(f"{text!r} does not start with a window ({', '.join(WINDOWS)})")
    return window, count(number)


def _money(text: str) -> tuple[str, float]:
    window, _, number = text.partition("=")
    if window not in WINDOWS:
        raise argparse.ArgumentTypeError(f"{text!r} does not start with a window ({', '.join(WINDOWS)})")
    try:
        dollars = float(number)
    except ValueError:
        dollars = 0.0
    if not (0 < dollars < math.inf):
        raise argparse.ArgumentTypeError(f"{text!r} does not end with an amount of dollars above 0")
    return window, dollars


def _budgets(arguments: argparse.Namespace) -> tuple[api_keys.Quota, ...]:
    requests, tokens = dict(arguments.budget_requests), dict(arguments.budget_tokens)
    dollars = dict(arguments.budget_usd)
    windows = [window for window in WINDOWS if window in {**requests, **tokens, **dollars}]
    return tuple(
        api_keys.Quota(window, requests.get(window), tokens.get(window), dollars.get(window))
        for window in windows
    )


def run(arguments: argparse.Namespace) -> int:
    import trio

    from qproxy.backends.shared_commands import with_api_keys

    config, now = configuration.load(path=arguments.config), time.time()
    shared = config.shared_state is not None
    if arguments.action == "list":
        for line in keys_table(trio.run(with_api_keys, config, _list_keys), now):
            print_result(line)
    elif arguments.action == "revoke":
        revoked = trio.run(with_api_keys, config, lambda store: store.revoke(arguments.key))
        record_change(config, api_keys.audit_entry(current_actor(), "key.revoke", revoked))
        when = "Every running server rejects it within about a second" if shared else REJECTED
        print_result(f"Revoked {revoked.id}. {when}.")
    else:
        fields = _key_fields(arguments, now)
        key, secret = trio.run(with_api_keys, config, lambda store: store.create(**fields))
        record_change(config, api_keys.audit_entry(current_actor(), "key.create", key))
        place = "shared_state" if shared else config.keys_file
        print_note(f"Created {key.id} in {place}. Save the key now; it is not shown again:")
        print_result(secret)
    return 0


async def _list_keys(store: ApiKeyStore) -> tuple[api_keys.ApiKey, ...]:
    return store.list_keys()


def keys_table(known: Sequence[api_keys.ApiKey], now: float) -> list[str]:
    """Return the keys as lines of a table, without their secrets (which are not stored)."""
    rows = [("id", "name", "state", "created", "expires", "rpm", "tpm", "models", "budgets")]
    for key in known:
        budgets = ", ".join(budget.describe() for budget in key.budgets) or "-"
        limits = (str(key.rpm or "-"), str(key.tpm or "-"), ",".join(key.models) or "all", budgets)
        rows.append(
            (
                key.id,
                key.name or "-",
                key.status(now),
                _format_date(key.created),
                _format_date(key.expires),
                *limits,
            )
        )
    return format_table(rows, width=output_width())


def _format_date(when: int | None) -> str:
    return "-" if when is None else time.strftime("%Y-%m-%d %H:%M", time.gmtime(when))


def _key_fields(arguments: argparse.Namespace, now: float) -> dict[str, Any]:
    try:
        expires = api_keys.parse_expiry(arguments.expires, now) if arguments.expires else None
    except ValueError:
        raise ConfigError(
            f"--expires: {arguments.expires!r} is neither a duration (30d) nor a date (2027-01-31)."
        ) from None
    return {
        "name": arguments.name,
        "rpm": arguments.rpm,
        "tpm": arguments.tpm,
        "models": tuple(word.strip() for word in arguments.models.split(",") if word.strip()),
        "expires": expires,
        "budgets": _budgets(arguments),
    }
