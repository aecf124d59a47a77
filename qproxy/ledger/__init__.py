"""The ledger: who used how much of what, kept in one SQLite file.

    schema    the tables, and how a file from before becomes one of today
    rows      a finished record as a row
    prices    what tokens cost, as far as that is known
    writing   the thread that writes: a batch at a time, never later than a second
    usage     the questions: sums by key, account or model over a window
    history   the same for people who look: sums along time, speeds, single requests

Several processes share a file (SQLite's write-ahead log lets one write while others read); nothing of a request is
in it but names, numbers and codes.  Any SQLite tool, Datasette among them, reads it while the server runs.
"""

from qproxy.ledger.prices import Pricing
from qproxy.ledger.schema import LedgerError
from qproxy.ledger.writer import UsageLedger

__all__ = ["UsageLedger", "LedgerError", "Pricing"]
