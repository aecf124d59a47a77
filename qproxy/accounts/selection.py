"""Account selection: a pure function of the accounts' state, the request and the time.

Accounts are filtered in this order: supports the model; circuit closed; not cooling down; below its
concurrency and rate limits; known to list the model. Among those, the conversation's account by rendezvous
hashing, unless it is much busier than the others. If all accounts are cooling down, the one whose cooldown
ends first is used, then those whose cooldown may have ended early: an upstream's response is more reliable
than an estimate.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from qproxy.accounts.account import Account, Capability
from qproxy.wire.errors import QproxyError, RequestError, RetryHint, UpstreamError

EMBEDDINGS_UNSUPPORTED = (
    "No account supports embeddings with this model: Coding Plans, Token Plans and logins only support chat. "
    "Add a pay-as-you-go key or a server with an embedding model."
)


@dataclass(frozen=True, slots=True)
class CapacityWait:
    """The result when every account is at its concurrency or rate limit."""

    seconds: float = math.inf
    """Seconds until `rate_limited` has capacity."""
    rate_limited: Account | None = None
    at_capacity: bool = True
    """Whether an account is at its concurrency limit, so that a slot may become free at any time."""
    recheck_after: float = math.inf
    """When the next cooldown or open circuit ends."""


@dataclass(frozen=True, slots=True)
class Unavailable:
    """The result when no account can be used, with the error for the client."""

    error: QproxyError


def _hash(affinity: str, account: Account) -> float:
    """Return a weighted rendezvous hash.

    A conversation keeps its account, whose prompt cache it has filled; removing an account moves only its
    conversations.
    """
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
    preferred: str = "",
    without: Iterable[Account] = (),
    tokens: int = 0,
) -> Account | CapacityWait | Unavailable:
    """Return the account for the next attempt at `model`; `without` lists those already tried.

    `preferred` names the account whose prompt cache has the beginning of the prompt.
    """
    fitting = [account for account in accounts if account.supports(model, task)]
    if not fitting:
        return Unavailable(_unknown_model_error(accounts, model))
    tried = set(without)
    fresh = [account for account in fitting if account not in tried]
    if not fresh:
        return Unavailable(UpstreamError("All accounts for this model have been tried."))
    up = [account for account in fresh if not account.circuit_breaker.wait(now)]
    if not up:
        return Unavailable(
            _outage_error(min(fresh, key=lambda account: account.circuit_breaker.wait(now)), now)
        )
    available = [account for account in up if now >= account.cooldown_until(model)]
    candidates = available or up
    free = [
        account
        for account in candidates
        if not account.at_capacity(now) and not account.rate_limiter.wait(tokens, now)
    ]
    if not free:
        later = [max(a.cooldown_until(model), now + a.circuit_breaker.wait(now)) for a in fresh]
        later += [account.full_until for account in candidates]
        return _shortest_wait(
            candidates, now, tokens, min((at for at in later if at > now), default=math.inf)
        )
    if not available:
        return _next_cooling(free, model, is_recheck=bool(tried))
    listing = [account for account in free if account.known_models is None or model in account.known_models]
    return _by_affinity(listing or free, affinity, preferred)


def _next_cooling(free: Sequence[Account], model: str, *, is_recheck: bool) -> Account:
    """Return the account whose cooldown ends first; for a recheck the one whose cooldown is most likely
    obsolete."""
    free = [account for account in free if account.names(model)] or free
    orders = {account: account.recheck_order(model) for account in free} if is_recheck else {}
    rechecked = {account: order for account, order in orders.items() if order is not None}
    if rechecked:
        return min(rechecked, key=lambda account: rechecked[account])
    return min(free, key=lambda account: account.cooldown_until(model))


def _by_affinity(free: Sequence[Account], affinity: str, preferred: str) -> Account:
    """Return the conversation's account by bounded loads, or the least loaded one without a conversation."""
    if len(free) == 1:
        return free[0]
    if not affinity:
        return min(free, key=lambda account: (account.load, account.requests / account.weight))
    bound = 1 + 1.25 * sum(account.load for account in free) / len(free)
    return max(
        free,
        key=lambda account: (account.load <= bound, account.name == preferred, _hash(affinity, account)),
    )


def _shortest_wait(candidates: Sequence[Account], now: float, tokens: int, wakes: float) -> CapacityWait:
    limited = [account for account in candidates if not account.at_capacity(now)]
    if not limited:
        return CapacityWait(recheck_after=wakes)
    first = min(limited, key=lambda account: account.rate_limiter.wait(tokens, now))
    return CapacityWait(
        first.rate_limiter.wait(tokens, now),
        first,
        at_capacity=len(limited) < len(candidates),
        recheck_after=wakes,
    )


def _unknown_model_error(accounts: Sequence[Account], model: str) -> RequestError:
    message = f"The model {model[:200]!r} does not exist or you do not have access to it."
    if any(account.supports(model) for account in accounts):
        message = EMBEDDINGS_UNSUPPORTED
    return RequestError(message, status=404, param="model", code="model_not_found")


def named_outage(
    accounts: Sequence[Account], model: str, *, now: float, task: Capability = "chat"
) -> UpstreamError | None:
    """Return the outage of the accounts that name the model, None unless there are such and all are down."""
    named = [account for account in accounts if account.supports(model, task) and account.names(model)]
    if not named or not all(account.circuit_breaker.wait(now) for account in named):
        return None
    return _outage_error(min(named, key=lambda account: account.circuit_breaker.wait(now)), now)


def _outage_error(account: Account, now: float) -> UpstreamError:
    wait = max(1.0, account.circuit_breaker.wait(now))
    message = (
        f"The upstream is unavailable ({account.circuit_breaker.failures} consecutive failures, "
        f"last: {account.last_error}). Next attempt in {wait:.0f} s."
    )
    return UpstreamError(
        message, status=503, code="upstream_unavailable", retry=RetryHint.AFTER, retry_after=wait
    )


def can_recheck(
    accounts: Sequence[Account],
    model: str,
    *,
    now: float,
    task: Capability = "chat",
    without: Iterable[Account],
    lacks_model: bool = False,
) -> bool:
    """Return whether an untried account is cooling down for a reason that may have ended early.

    With `lacks_model`, those tried do not have the model, so any account that names it is worth an attempt.
    """
    return any(
        not account.at_capacity(now)
        and (account.recheck_order(model) is not None or (lacks_model and account.names(model)))
        for account in _untried(accounts, model, now, task, without)
    )


def has_alternative(
    accounts: Sequence[Account],
    model: str,
    *,
    now: float,
    task: Capability = "chat",
    without: Iterable[Account],
) -> bool:
    """Return whether an untried account is available for the model."""
    return any(
        now >= account.cooldown_until(model) for account in _untried(accounts, model, now, task, without)
    )


def _untried(
    accounts: Sequence[Account], model: str, now: float, task: Capability, without: Iterable[Account]
) -> Iterator[Account]:
    """Yield the accounts for the model that are not excluded and whose upstream is not known to be down."""
    tried = set(without)
    return (
        account
        for account in accounts
        if account.supports(model, task) and account not in tried and not account.circuit_breaker.wait(now)
    )
