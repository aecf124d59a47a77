"""`qproxy purge`: delete what is stored of one API key.

The stores delete; here are the keys that a name stands for, revoked ones included, and the order.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import trio

from qproxy import config as configuration
from qproxy.access.api_keys import ApiKey, ApiKeyStore, keys_from_settings
from qproxy.cli.audit import current_actor, record_change
from qproxy.cli.help import CONFIGURATION, DONE, HelpPage
from qproxy.cli.output import print_error, print_note, print_result
from qproxy.config import Config
from qproxy.config.accounts import ConfigError
from qproxy.ledger.protocol import LedgerError
from qproxy.telemetry.audit import AuditEntry
from qproxy.wire.errors import QproxyError

if TYPE_CHECKING:
    from qproxy.server.stores import ResponseStores

HELP = "delete what is stored of an API key: its usage and its responses"
PAGE = HelpPage(
    about="""Delete the stored responses and conversations of a key and its rows of the usage ledger, sums
    included, so that its budgets start again. The data is overwritten in the files. The key itself stays as
    it is (`qproxy keys revoke`), as do audit log and log files. Servers may go on; what they keep in memory
    ends by itself (tool_round_cache_seconds, reasoning_cache_seconds).""",
    examples={
        "qproxy purge --key bob": "forget someone whose key was revoked",
        "qproxy purge --key key_fe0b965f --responses-only": "keep the usage, for accounting",
    },
    exits={**DONE, 1: "not everything could be deleted; it may be repeated"},
    files={**CONFIGURATION, "$QPROXY_HOME": "the data directory"},
)


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--key", metavar="NAME", required=True, help="name or ID of the key, revoked or not")
    parser.add_argument("--responses-only", action="store_true", help="keep the usage ledger")
    parser.add_argument("--config", metavar="PATH", help="configuration file that names the files")


def run(arguments: argparse.Namespace) -> int:
    config = configuration.load(path=arguments.config)
    keys = find_keys(config, arguments.key)
    try:
        responses = trio.run(_purge_responses, config, keys)
        rows = 0 if arguments.responses_only else trio.run(_purge_ledger, config, keys)
    except (QproxyError, LedgerError) as error:
        print_error(str(error))
        return 1
    detail = f"{responses} responses, {rows} requests"
    record_change(config, AuditEntry(current_actor(), "data.purge", arguments.key, detail))
    print_result(f"Deleted {responses:,} responses and {rows:,} requests of {arguments.key}.")
    active = [key.id for key in keys if key.revoked is None]
    if active:
        print_note(f"Still active: {', '.join(active)}; to revoke it: qproxy keys revoke {active[0]}")
    return 0


def find_keys(config: Config, name: str) -> list[ApiKey]:
    """Return every key with this name or ID, revoked ones included. Raises ConfigError if there is none."""
    from qproxy.backends.shared_commands import with_api_keys

    async def list_keys(store: ApiKeyStore) -> Sequence[ApiKey]:
        return store.list_keys()

    known = [*keys_from_settings(config.api_keys), *trio.run(with_api_keys, config, list_keys)]
    keys = [key for key in known if name in (key.name, key.id)]
    if not keys:
        raise ConfigError(f"--key: no key {name!r}; `qproxy keys list` shows them.")
    return keys


async def _purge_responses(config: Config, keys: Sequence[ApiKey]) -> int:
    from qproxy.backends.shared_commands import with_stores
    from qproxy.backends.stores import open_batches, open_files, open_uploads

    async def delete(stores: ResponseStores) -> int:
        deleted = [
            sum([await store.delete_owner(key.digest) for key in keys])
            for store in (stores.responses, stores.conversations, stores.response_runs, stores.completions)
            if store is not None
        ]
        return deleted[0] if deleted else 0

    if config.files_directory:
        for store in (open_batches(config), open_uploads(config), open_files(config)):
            for key in keys:
                await store.delete_owner(key.digest)
            await store.aclose()

    stored = bool(config.responses_file or config.shared_state)
    return await with_stores(replace(config, store_responses=stored), delete)


async def _purge_ledger(config: Config, keys: Sequence[ApiKey]) -> int:
    from qproxy.backends.ledgers import open_ledger
    from qproxy.ledger import Pricing

    ledger = open_ledger(config, Pricing())
    if ledger is None:
        return 0
    labels = sorted({key.label for key in keys})
    try:
        return sum([await ledger.delete_key(label) for label in labels])
    finally:
        await ledger.aclose()
