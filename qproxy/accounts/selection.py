"""Which account is asked next: pure, a function of the accounts as they are, the wish and the time.

The order of the questions: who may serve the model; who is not down; who does not rest; who has a place and is not
paced out; who is known to list the model; and among those the conversation's own account, unless it is far busier than
the rest.  Where nobody is sure to serve, the one that will be first is asked: the server's own word is better than
a guess of ours.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from qproxy.accounts.account import Account, Capability
from qproxy.wire.errors import QproxyError, RequestError, RetryHint, UpstreamError

EMBEDDINGS_UNSUPPORTED = (
    "No account of this server makes embeddings with this model: Coding Plans, Token Plans and logins only chat. "
    "A pay-as-you-go key does, and so does a server of your own with an embedding model."
)


@dataclass(frozen=True, slots=True)
class CapacityWait:
    """Every fitting account is full or paced out."""

    seconds: float = math.inf
    """Until `rate_limited` may be asked."""
    rate_limited: Account | None = None
    at_capacity: bool = True
    """One of them is full, so a place may be free any moment."""
    recheck_after: float = math.inf
    """When one that rests, or is down, may be asked."""


@dataclass(frozen=True, slots=True)
class Unavailable:
    """No account will do; the error to answer with."""

    error: QproxyError


def _hash(affinity: str, account: Account) -> float:
    """Weighted rendezvous hashing: one conversation keeps meeting the same account, whose prompt cache it has
    filled, and losing an account moves only that account's conversations."""
    digest = hashlib.blake2b(f"{affinity}/{account.name}".encode(), digest_size=8).digest()
    uniform = (int.from_bytes(digest, "big") + 1) / (2**64 + 1)
    return -account.weight / math.log(uniform)


def select_account(
    accounts: Sequence[Account],
    model: str,
    *,
    now: float,
    task: Capability = "chat",
    affinity: str = "",
    without: Iterable[Account] = (),
    tokens: int = 0,
) -> Account | CapacityWait | Unavailable:
    """The account for the next try at `model`; `without` lists those that this request has tried."""
    fitting = [account for account in accounts if account.supports(model, task)]
    if not fitting:
        return Unavailable(_unknown_model_error(accounts, model))
    tried = set(without)
    fresh = [account for account in fitting if account not in tried]
    if not fresh:
        return Unavailable(UpstreamError("Every account that serves this model has been tried."))
    up = [account for account in fresh if not account.circuit_breaker.wait(now)]
    if not up:
        return Unavailable(
            _outage_error(min(fresh, key=lambda account: account.circuit_breaker.wait(now)), now)
        )
    awake = [account for account in up if now >= account.cooldown_until(model)]
    fit = awake or up
    free = [
        account
        for account in fit
        if not account.at_capacity(now) and not account.rate_limiter.wait(tokens, now)
    ]
    if not free:
        later = [max(a.cooldown_until(model), now + a.circuit_breaker.wait(now)) for a in fresh]
        return _shortest_wait(fit, now, tokens, min((at for at in later if at > now), default=math.inf))
    if not awake:
        return min(free, key=lambda account: account.cooldown_until(model))
    knowing = [account for account in free if account.known_models is None or model in account.known_models]
    return _dedicated(knowing or free, affinity)


def _dedicated(free: Sequence[Account], affinity: str) -> Account:
    """The conversation's account by bounded loads; without a conversation the one with the least to do."""
    if len(free) == 1:
        return free[0]
    if not affinity:
        return min(free, key=lambda account: (account.load, account.requests / account.weight))
    bound = 1 + 1.25 * sum(account.load for account in free) / len(free)
    return max(free, key=lambda account: (account.load <= bound, _hash(affinity, account)))


def _shortest_wait(fit: Sequence[Account], now: float, tokens: int, wakes: float) -> CapacityWait:
    paced = [account for account in fit if not account.at_capacity(now)]
    if not paced:
        return CapacityWait(recheck_after=wakes)
    first = min(paced, key=lambda account: account.rate_limiter.wait(tokens, now))
    return CapacityWait(
        first.rate_limiter.wait(tokens, now), first, at_capacity=len(paced) < len(fit), recheck_after=wakes
    )


def _unknown_model_error(accounts: Sequence[Account], model: str) -> RequestError:
    message = f"The model {model[:200]!r} does not exist or you do not have access to it."
    if any(account.supports(model) for account in accounts):
        message = EMBEDDINGS_UNSUPPORTED
    return RequestError(message, status=404, param="model", code="model_not_found")


def _outage_error(account: Account, now: float) -> UpstreamError:
    wait = max(1.0, account.circuit_breaker.wait(now))
    message = (
        f"The model's server has failed {account.circuit_breaker.failures} times in a row (last: {account.last_error}). "
        f"It is asked again in {wait:.0f} s."
    )
    return UpstreamError(
        message, status=503, code="upstream_unavailable", retry=RetryHint.AFTER, retry_after=wait
    )


def has_alternative(
    accounts: Sequence[Account],
    model: str,
    *,
    now: float,
    task: Capability = "chat",
    without: Iterable[Account],
) -> bool:
    """Whether an untried account is awake and may serve the model."""
    tried = set(without)
    return any(
        a.supports(model, task)
        and a not in tried
        and now >= a.cooldown_until(model)
        and not a.circuit_breaker.wait(now)
        for a in accounts
    )
