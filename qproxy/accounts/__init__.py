"""Who we speak as.

    select_account(accounts, model, ...)  pure: an account, or why none will do (`selection`)
    async with accounts.lease(model)      acts on it: waits in a bounded line, counts in and out (`pool`)
    account.record_failure(error, now, m) what an upstream's refusal says about the account (`account`, `cooldowns`)
    shared_state                          what the processes on one machine agree on, and what outlives them; `sync`
                                          keeps both sides in step, `backends.local.account_state` is the file
    rate_limit, quota_resets, report      how fast one may be asked, when a quota is back, how they are for people

Nothing here reads a token or sends a byte: that is `auth` and `transport`.
"""

from qproxy.accounts.account import Account, Capability
from qproxy.accounts.pool import AccountPool
from qproxy.accounts.selection import CapacityWait, Unavailable, has_alternative, select_account

__all__ = [
    "Account",
    "AccountPool",
    "Capability",
    "CapacityWait",
    "Unavailable",
    "has_alternative",
    "select_account",
]
