"""All that one process keeps on one server: its client, its members, and the task that serves them.

The log states at start what is shared and what is not.
"""

from __future__ import annotations

import logging
import math
from pathlib import Path

import trio

from qproxy.access.grants import GrantStore
from qproxy.auth.login_sessions import LoginSessions
from qproxy.backends.redis import stores
from qproxy.backends.redis.account_state import ACCOUNTS, RedisAccountState
from qproxy.backends.redis.client import RedisClient
from qproxy.backends.redis.credentials import CHANNEL as CREDENTIALS_CHANNEL
from qproxy.backends.redis.credentials import CREDENTIALS, RedisCredentials
from qproxy.backends.redis.grants import GRANTS, RedisGrants
from qproxy.backends.redis.inventory import RESEAL
from qproxy.backends.redis.key_table import API_KEYS, KeyTable
from qproxy.backends.redis.login_sessions import LOGINS, RedisLoginSessions
from qproxy.backends.redis.model_lists import RedisModelLists
from qproxy.backends.redis.monitor import RedisMonitor
from qproxy.backends.redis.outbox import Outbox
from qproxy.backends.redis.permissions import PERMISSIONS
from qproxy.backends.redis.rate_limits import RedisRateLimits
from qproxy.backends.redis.script import load_script
from qproxy.backends.redis.sealing import Sealer
from qproxy.backends.redis.stores import RedisStores
from qproxy.backends.redis.subjects import Policy, Subjects
from qproxy.backends.redis.subscriber import Subscriber
from qproxy.backends.redis.usage_limiter import RedisUsageLimiter
from qproxy.ledger import UsageLedger

SHARED = (
    "API keys, their rate limits and budgets, limits on wrong keys, dashboard sessions, logins in progress, "
    "accounts' cooldowns, circuits and limits, lists of models"
)
LOCAL = "audit log"
"""What each machine, or process, still has of its own."""
SEALED = (
    "tokens of logged-in accounts, stored responses, conversations, background responses, tool rounds, "
    "reasoning"
)
"""What is shared with a `shared_state_key_file`, and local without one."""
CLOSE_SECONDS = 2.0
"""Maximum seconds at the end for the last exchange of account states."""
LIMITS = load_script("limits")
SCRIPTS = (
    LIMITS, ACCOUNTS, GRANTS, API_KEYS, CREDENTIALS, LOGINS, PERMISSIONS, RESEAL, *stores.SCRIPTS,
)  # fmt: skip
log = logging.getLogger("qproxy.backends")


class SharedState:
    """The members of one process on a server."""

    def __init__(
        self,
        client: RedisClient,
        policy: Policy,
        ledger: UsageLedger | None,
        *,
        grants: GrantStore,
        key_table: KeyTable | None,
        sealer: Sealer | None,
        outbox_directory: Path | None = None,
    ) -> None:
        """`client` has `SCRIPTS`; `grants` is this machine's own store; without `key_table` the only keys are
        those of the settings, and without `sealer` nothing that has to be sealed is shared.
        `outbox_directory` keeps changes of limits from one process to the next."""
        self.client = client
        self.subscriber = Subscriber(client)
        self._outbox = Outbox(client, LIMITS, outbox_directory)
        keys, addresses = Subjects(client, LIMITS, "k", policy), Subjects(client, LIMITS, "w", "share")
        accounts = Subjects(client, LIMITS, "a", policy)
        self._subjects = (keys, addresses, accounts)
        self.key_table = key_table
        self.usage_limiter = RedisUsageLimiter(keys, ledger)
        self.wrong_secrets = RedisRateLimits(addresses)
        self.account_state = RedisAccountState(client, accounts, self.subscriber)
        self.model_lists = RedisModelLists(client)
        self.grants = RedisGrants(client, grants)
        self.sealer = sealer
        self._logins: RedisLoginSessions | None = None
        self.credentials: list[RedisCredentials] = []
        """The stores of accounts' tokens that are open, which learn at once what others publish."""
        self.stores = None if sealer is None else RedisStores(client, sealer)
        self.monitor = RedisMonitor(client, self._count_unsettled)

    def __repr__(self) -> str:
        return f"<SharedState {self.client!r}>"

    def _count_unsettled(self) -> int:
        return len(self._outbox) + sum(subjects.active for subjects in self._subjects)

    def open_login_sessions(self, local: LoginSessions) -> LoginSessions:
        """Return the logins of all processes; `local` runs those of this one."""
        self._logins = RedisLoginSessions(self.client, local)
        return self._logins

    async def run(self) -> None:
        """Serve the members until cancelled, and then send what the server does not know yet."""
        shared, local = f"{SHARED}, {SEALED}", LOCAL
        if self.stores is None:
            shared, local = SHARED, f"{LOCAL}; without shared_state_key_file also {SEALED}"
        log.info("shared state: in %s: %s; local: %s", self.client.address, shared, local)
        self._outbox.load()
        work = trio.CancelScope(shield=True)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._serve, work)
            try:
                await trio.sleep_forever()
            finally:
                with trio.CancelScope(shield=True):
                    with trio.move_on_after(CLOSE_SECONDS):
                        await self.account_state.wait_closed()
                    for subjects in self._subjects:
                        await subjects.aclose()
                    self._outbox.save(entry for subjects in self._subjects for entry in subjects.unsettled())
                    await self.client.presence.end()
                work.cancel()

    async def _follow_credentials(self) -> None:
        subscription = self.subscriber.subscribe(CREDENTIALS_CHANNEL)
        while True:
            changes = await subscription.wait(math.inf)  # the stores look every few seconds anyway
            for store in self.credentials:
                store.receive(changes)

    async def _serve(self, scope: trio.CancelScope) -> None:
        with scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.client.run)
                nursery.start_soon(self.subscriber.run)
                if self.key_table is not None:
                    nursery.start_soon(self.key_table.run, self.subscriber)
                nursery.start_soon(self._follow_credentials)
                if self._logins is not None:
                    nursery.start_soon(self._logins.run, self.subscriber)
                for subjects in self._subjects:
                    nursery.start_soon(subjects.run)
