"""Probes of failing accounts: one small request each, with backoff, until one succeeds.

An account that has failed might get no more requests, or only from clients that pay for the attempt with
their time; so the server finds out itself. A probe is a request like any other: it uses the account's lease,
rate limit and cooldown, and its success ends the cooldown for all processes.

An account counts as down (`is_down`) only once a probe has failed too, or its circuit is open: so no client's
request can take a server out of a load balancer, and a server that is out returns by itself.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any

import trio

from qproxy.accounts import Account, Capability
from qproxy.relay.chat_attempt import ChatAttempt
from qproxy.relay.embeddings import EmbeddingAttempt
from qproxy.relay.relay import Relay
from qproxy.relay.retry import Attempt
from qproxy.telemetry import RelayRecord
from qproxy.wire.embeddings import EmbeddingInput
from qproxy.wire.errors import LimitKind, QproxyError, UpstreamError
from qproxy.wire.events import Turn

CHECK_SECONDS = 1.0
FIRST_DELAY = 1.0
"""Seconds from a failure to the first probe; each further delay is twice as long, up to `probe_interval`."""
JITTER = 0.25
MAX_TOKENS = 16
log = logging.getLogger("qproxy.accounts")


class AccountProber:
    """Probes the failing accounts of a server."""

    def __init__(
        self, relay: Relay, *, max_delay: float, jitter: Callable[[], float] = random.random
    ) -> None:
        """`max_delay` is the setting `probe_interval`; 0 turns the probes off."""
        self.relay = relay
        """The current relay, which a reload replaces."""
        self._max_delay = max_delay
        self._jitter = jitter
        self._probed: set[Account] = set()
        self._failed: set[Account] = set()
        """Accounts whose last probe failed."""

    def __repr__(self) -> str:
        return f"<AccountProber of {len(self._probed)} failing accounts>"

    def is_down(self, account: Account, now: float) -> bool:
        """Return whether a failing account is known to serve no request, and is probed until it does."""
        if not self._max_delay or account.failed_model is None:
            return False
        return account in self._failed or bool(account.circuit_breaker.wait(now))

    async def run(self) -> None:
        """Probe each failing account until it works again."""
        if not self._max_delay:
            return
        async with trio.open_nursery() as nursery:
            while True:
                for account in self.relay.accounts.accounts:
                    if account not in self._probed and _can_probe(account):
                        self._probed.add(account)
                        nursery.start_soon(self._probe_until_success, account)
                await trio.sleep(CHECK_SECONDS)

    async def _probe_until_success(self, account: Account) -> None:
        delay = FIRST_DELAY
        try:
            while True:
                await trio.sleep(min(delay, self._max_delay) * (1 + JITTER * self._jitter()))
                delay *= 2
                if account not in self.relay.accounts.accounts or not _can_probe(account):
                    return
                if not self._must_wait(account):
                    await self._probe(account)
        finally:
            self._probed.discard(account)
            self._failed.discard(account)

    def _must_wait(self, account: Account) -> bool:
        """Return whether a probe would be useless: before a limit resets; a key may be valid at any time."""
        now, model = trio.current_time(), account.failed_model or ""
        cooldowns = [account.cooldowns[key] for key in ("", model) if key in account.cooldowns]
        if any(now < item.until and item.reason != LimitKind.ACCESS.value for item in cooldowns):
            return True
        if account.circuit_breaker.wait(now):
            return True
        return account.at_capacity(now) or bool(account.rate_limiter.wait(1, now))

    async def _probe(self, account: Account) -> None:
        """Send one request, and record its result."""
        model, started_at = account.failed_model or "", trio.current_time()
        task: Capability = "embedding" if account.catalog.get(model).is_for("embedding") else "chat"
        others = [other for other in self.relay.accounts.accounts if other is not account]
        attempt = self._attempt(model, task)
        credential = None
        try:
            async with AsyncExitStack() as stack:
                lease = self.relay.accounts.lease(model, task=task, without=others)
                await stack.enter_async_context(lease)
                try:
                    credential = await account.source.credential()
                    await attempt.start(account, credential, stack)
                except UpstreamError as error:
                    account.record_failure(error, trio.current_time(), model)
                    self._note_failure(account, error)
                    if credential is not None and error.code == "upstream_credentials_exhausted":
                        await account.source.report_rejected(credential, error.message)
                    return
        except QproxyError as error:  # no lease: others use the account, and find out
            log.debug("account %s was not probed: %s", account.name, error.message)
            return
        account.record_success(model, started_at)
        log.info("account %s works again: a probe succeeded", account.name)

    def _attempt(self, model: str, task: Capability) -> Attempt[Any]:
        record = RelayRecord(model=model, served_model=model)
        if task == "embedding":
            return EmbeddingAttempt(self.relay.transport, model, EmbeddingInput(model, ("hello",)), record)
        turn = Turn(
            "chatcmpl-probe",
            int(time.time()),
            model,
            [{"role": "user", "content": "Say hello."}],
            params={"max_tokens": MAX_TOKENS},
        )
        return ChatAttempt(
            turn,
            model,
            record,
            self.relay.transport,
            self.relay.policy,
            None,
            self.relay.token_ratios,
            self.relay.cache_planner,
            counts_tokens=self.relay.accounts.counts_tokens,
        )

    def _note_failure(self, account: Account, error: UpstreamError) -> None:
        """Remember a failure of the account; any other error shows that the upstream responds."""
        if account.history.is_failing and account.last_fault_at == account.last_error_at:
            self._failed.add(account)
        else:
            self._failed.discard(account)
        log.info("account %s is failing: a probe got %s %s", account.name, error.status, error.code)


def _can_probe(account: Account) -> bool:
    login = account.login_state()
    return account.failed_model is not None and account.history.is_failing and (not login or login.usable)
