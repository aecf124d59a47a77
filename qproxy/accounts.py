"""Who we speak as.

`choose` is pure: given the accounts and the time it names one, or says why none will do and when one may.
`Accounts.lease` acts on it: it waits (bounded) while every fitting account is at its limit, counts the
request in and out, and remembers what upstream errors say about an account (`Account.failed`).

Nothing here reads a token or sends a byte: that is `auth` and `transport`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from typing import Literal, TypeAlias

import trio

from qproxy.auth import CredentialSource
from qproxy.circuit import Circuit
from qproxy.wire.errors import Overloaded, QproxyError, RequestError, Retry, UpstreamError
from qproxy.wire.http import Headers

Task: TypeAlias = Literal["chat", "embedding"]
"""What an account is wanted for."""
EXHAUSTED_SECONDS = 300.0
"""How long an account whose quota is spent rests before it is asked again, when no reset time is known.
Minutes, not for ever: the words of a quota error have been wrong before, and one request is cheap."""
CANNOT_EMBED = (
    "No account of this server makes embeddings with this model: Coding Plans, Token Plans and logins only chat. "
    "A pay-as-you-go key does, and so does a server of your own with an embedding model."
)


@dataclass(eq=False, slots=True)
class Account:
    """One way into a Qwen server, and how it has been doing."""

    name: str
    source: CredentialSource = field(repr=False)
    family: str = "dashscope"
    plan: str = "payg"
    dialect: str = "compatible"
    models: tuple[str, ...] = ("*",)
    """Patterns of the models that it serves."""
    weight: float = 1.0
    max_in_flight: int | None = None
    rules: Mapping[str, bool] = field(default_factory=dict, repr=False)
    headers: Headers = field(default=(), repr=False)
    tool_schema: str = "openai"
    render_tools: str = ""
    """How tools are written into the prompt: "auto", "hermes", "coder", or not at all."""
    embedding_batch: int = 10
    """The most texts in one request for embeddings; 0: it cannot embed."""

    known_models: frozenset[str] | None = field(default=None, repr=False)
    """What its server lists, once that has been asked; None before."""
    in_flight: int = 0
    resting_until: float = 0.0
    """Trio's clock; the account is not chosen before."""
    last_error: str | None = None
    requests: int = 0
    circuit: Circuit = field(default_factory=Circuit)

    def offers(self, model: str, task: Task = "chat") -> bool:
        """Whether the operator lets this account serve the model, and it can."""
        able = task == "chat" or self.embedding_batch > 0
        return able and any(fnmatchcase(model, pattern) for pattern in self.models)

    @property
    def full(self) -> bool:
        return self.max_in_flight is not None and self.in_flight >= self.max_in_flight

    @property
    def load(self) -> float:
        return self.in_flight / self.weight

    def state(self, now: float) -> str:
        """One word for people: ready, full or resting."""
        return "resting" if now < self.resting_until else "full" if self.full else "ready"

    def failed(self, error: QproxyError, now: float) -> None:
        """Remember what an upstream's error says about the account rather than about the request."""
        self.last_error = f"{error.status} {error.code or error.type}"
        self.circuit.heard(error, now)
        if error.code == "insufficient_quota":
            self.resting_until = now + (error.retry_after or EXHAUSTED_SECONDS)
        elif error.retry is Retry.LATER:
            self.resting_until = now + min(error.retry_after or 1.0, 60.0)

    def succeeded(self) -> None:
        self.last_error = None
        self.resting_until = 0.0
        self.circuit.heard(None, 0.0)


@dataclass(frozen=True, slots=True)
class Wait:
    """Every fitting account is full: one may be free any moment."""


@dataclass(frozen=True, slots=True)
class Nothing:
    """No account will do; the error to answer with."""

    error: QproxyError


def _hash(affinity: str, account: Account) -> float:
    """Weighted rendezvous hashing: one conversation keeps meeting the same account, whose prompt cache it has
    filled, and losing an account moves only that account's conversations."""
    digest = hashlib.blake2b(f"{affinity}/{account.name}".encode(), digest_size=8).digest()
    uniform = (int.from_bytes(digest, "big") + 1) / (2**64 + 1)
    return -account.weight / math.log(uniform)


def choose(
    accounts: Sequence[Account],
    model: str,
    *,
    now: float,
    task: Task = "chat",
    affinity: str = "",
    without: Iterable[Account] = (),
) -> Account | Wait | Nothing:
    """The account for the next try at `model`; `without` lists those that this request has tried."""
    fitting = [account for account in accounts if account.offers(model, task)]
    if not fitting and any(account.offers(model) for account in accounts):
        return Nothing(RequestError(CANNOT_EMBED, status=404, param="model", code="model_not_found"))
    if not fitting:
        message = f"The model {model[:200]!r} does not exist or you do not have access to it."
        return Nothing(RequestError(message, status=404, param="model", code="model_not_found"))
    tried = set(without)
    fresh = [account for account in fitting if account not in tried]
    awake = [account for account in fresh if now >= account.resting_until]
    if not awake and fresh:  # none is sure to serve: the server's own word is better than a guess of ours
        awake = [min(fresh, key=lambda account: account.resting_until)]
    if not awake:
        return Nothing(UpstreamError("Every account that serves this model has been tried."))
    working = [account for account in awake if not account.circuit.wait(now)]
    if not working:
        return Nothing(_down(min(awake, key=lambda account: account.circuit.wait(now)), now))
    free = [account for account in working if not account.full]
    if not free:
        return Wait()
    knowing = [account for account in free if account.known_models is None or model in account.known_models]
    free = knowing or free
    if len(free) == 1:
        return free[0]
    # Bounded loads: the conversation's own account, unless that one is far busier than the rest.
    bound = 1 + 1.25 * sum(account.load for account in free) / len(free)
    return max(free, key=lambda account: (account.load <= bound, _hash(affinity, account)))


def _down(account: Account, now: float) -> UpstreamError:
    wait = max(1.0, account.circuit.wait(now))
    message = (
        f"The model's server has failed {account.circuit.failures} times in a row (last: {account.last_error}). "
        f"It is asked again in {wait:.0f} s."
    )
    return UpstreamError(
        message, status=503, code="upstream_unavailable", retry=Retry.LATER, retry_after=wait
    )


def another(
    accounts: Sequence[Account],
    model: str,
    *,
    now: float,
    task: Task = "chat",
    without: Iterable[Account],
) -> bool:
    """Whether an untried account is awake and may serve the model."""
    tried = set(without)
    return any(
        a.offers(model, task) and a not in tried and now >= a.resting_until and not a.circuit.wait(now)
        for a in accounts
    )


class Accounts:
    """All accounts of the server."""

    def __init__(self, accounts: Sequence[Account], *, queue_timeout: float = 1.0) -> None:
        self.accounts = tuple(accounts)
        self._queue_timeout = queue_timeout
        self._freed = trio.Condition()

    def __repr__(self) -> str:
        return f"<Accounts {', '.join(f'{account.name}:{account.in_flight}' for account in self.accounts)}>"

    def renew(self, other: Accounts) -> None:
        """Be what `other` is from now on; leases under way end where they began."""
        self.accounts, self._queue_timeout = other.accounts, other._queue_timeout

    @asynccontextmanager
    async def lease(
        self,
        model: str,
        *,
        task: Task = "chat",
        affinity: str = "",
        without: Iterable[Account] = (),
    ) -> AsyncIterator[Account]:
        """An account counted as in use inside the block; Overloaded when all stay full for `queue_timeout`."""
        account = await self._free(partial(self._chosen, model, task, affinity, list(without)))
        account.circuit.asked(trio.current_time())
        account.in_flight += 1
        account.requests += 1
        try:
            yield account
        finally:
            account.in_flight -= 1
            if account.max_in_flight is not None:
                with trio.CancelScope(shield=True):  # two checkpoints, nothing that can block
                    async with self._freed:
                        self._freed.notify_all()

    async def _free(self, chosen: Callable[[], Account | None]) -> Account:
        account = chosen()
        if account is not None:
            return account
        with trio.move_on_after(self._queue_timeout):
            async with self._freed:
                while (account := chosen()) is None:
                    await self._freed.wait()
                return account
        message = "Every account that serves this model is at its limit of requests at once."
        raise Overloaded(message, retry_after=1)

    def _chosen(self, model: str, task: Task, affinity: str, without: list[Account]) -> Account | None:
        choice = choose(
            self.accounts, model, now=trio.current_time(), task=task, affinity=affinity, without=without
        )
        if isinstance(choice, Nothing):
            raise choice.error
        return choice if isinstance(choice, Account) else None
