"""The usage ledger: who used how much of what.

    protocol   the interface: recording requests, and queries
    usage      the results of queries
    rows       a finished request as a row
    prices     what tokens and units cost, if known
    units      what requests use beside tokens

A row has names, numbers and codes of a request, and nothing of its content. `backends.local` has a member
that keeps the rows in an SQLite file, which any SQLite tool, such as Datasette, reads while the server runs.
"""

from qproxy.ledger.prices import Pricing
from qproxy.ledger.protocol import LedgerError, LedgerReader, UsageLedger
from qproxy.ledger.usage import WindowUsage

__all__ = ["LedgerError", "LedgerReader", "Pricing", "UsageLedger", "WindowUsage"]
