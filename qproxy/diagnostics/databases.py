"""Checks of the databases that several machines share."""

from __future__ import annotations

import trio

from qproxy.backends.ledgers import describe_ledger_database
from qproxy.config import Config
from qproxy.config.accounts import ConfigError
from qproxy.config.ledger import is_database_url
from qproxy.diagnostics.report import Finding
from qproxy.ledger import LedgerError

DATABASES, LEDGER = "databases", "usage ledger"


async def check_databases(config: Config) -> list[Finding]:
    """Connect to the ledger's database, if it is in one."""
    if not is_database_url(config.ledger):
        return []
    try:
        text = await trio.to_thread.run_sync(describe_ledger_database, config)
    except (LedgerError, ConfigError) as error:
        advice = "see: qproxy help operations; until then requests wait in the spool"
        return [Finding(DATABASES, LEDGER, "failed", str(error), advice)]
    return [Finding(DATABASES, LEDGER, "ok", text)]
