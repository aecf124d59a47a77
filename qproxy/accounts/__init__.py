"""Who we speak as.

    choose(accounts, model, now=...)     pure: an account, or why none will do (`choosing`)
    async with accounts.lease(model)     acts on it: waits in a bounded line, counts in and out (`leasing`)
    account.failed(error, now, model)    what an upstream's refusal says about the account (`account`, `rests`)
    board                                what the processes on one machine agree on, and what outlives them (`board`,
                                         `board_file`; `sharing` keeps both sides in step)
    pacing, resets, overview             how fast one may be asked, when a quota is back, how they are for people

Nothing here reads a token or sends a byte: that is `auth` and `transport`.
"""

from qproxy.accounts.account import Account, Capability
from qproxy.accounts.pool import AccountPool
from qproxy.accounts.selection import CapacityWait, Unavailable, has_alternative, select_account

__all__ = [
    "Account",
    "AccountPool",
    "Unavailable",
    "Capability",
    "CapacityWait",
    "has_alternative",
    "select_account",
]
