"""The upstream accounts: selection, queueing, cooldowns and shared state.

    select_account(accounts, model, ...)  pure: an account, or the reason why there is none (`selection`)
    async with accounts.lease(model)      waits in a bounded queue and counts requests in flight (`pool`)
    account.record_failure(error, now, m) updates the account after an upstream error (`account`, `cooldowns`)
    shared_state, sync                    the state that processes share and that survives them, and its
    exchange rate_limit, quota_resets, report      limits per minute, quota reset times, rows for `qproxy
    accounts`

Nothing here reads a token or sends a byte: that is `auth` and `transport`.
"""

from qproxy.accounts.account import Account, Capability
from qproxy.accounts.pool import AccountPool
from qproxy.accounts.selection import (
    CapacityWait,
    Unavailable,
    can_recheck,
    has_alternative,
    named_outage,
    select_account,
)

__all__ = [
    "Account",
    "AccountPool",
    "Capability",
    "CapacityWait",
    "Unavailable",
    "can_recheck",
    "has_alternative",
    "named_outage",
    "select_account",
]
