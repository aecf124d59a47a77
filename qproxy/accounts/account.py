"""One way into a Qwen server, and how it has been doing.

Here: what is known of one account, and how an error or a success changes that.  Not here: which account is chosen
(`selection`), how long a rest is (`cooldowns`).  Nothing is given up for ever: whatever an upstream says, the account is
asked again, and one good answer ends a rest.  Times are Trio's clock; `wall_clock` is only asked when a rest begins,
because upstreams speak of calendars.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Literal, TypeAlias

from qproxy.accounts import cooldowns as cooldown_rules
from qproxy.accounts.cooldowns import PROBE_SECONDS, Cooldown
from qproxy.accounts.rate_limit import AccountRateLimiter
from qproxy.auth import Credential, CredentialSource
from qproxy.limits.circuit_breaker import CircuitBreaker
from qproxy.wire.dialects import UpstreamTarget
from qproxy.wire.errors import LimitKind, QproxyError
from qproxy.wire.http_request import Headers
from qproxy.wire.models import ModelCatalog
from qproxy.wire.models.catalog import EMPTY

Capability: TypeAlias = Literal["chat", "embedding", "realtime"]
"""What an account is wanted for."""
MAX_COOLDOWNS = 200
"""Models that an account is known to refuse: their names come from clients."""
CONCURRENCY_BACKOFF_SECONDS = 60.0
"""How long an account that has said "too many at once" is asked for fewer at once."""
MAX_ERROR_CHARACTERS = 300


@dataclass(eq=False, slots=True)
class Account:
    """Its settings, and its state."""

    name: str
    source: CredentialSource = field(repr=False)
    provider_family: str = "dashscope"
    plan: str = "payg"
    dialect: str = "compatible"
    models: tuple[str, ...] = ("*",)
    """Patterns of the models that it serves."""
    weight: float = 1.0
    max_in_flight: int | None = None
    allowance: Mapping[str, int] = field(default_factory=dict, repr=False)
    """Requests that its plan allows, by window."""
    rules: Mapping[str, bool] = field(default_factory=dict, repr=False)
    headers: Headers = field(default=(), repr=False)
    tool_schema: str = "openai"
    render_tools: str = ""
    """How tools are written into the prompt: "auto", "hermes", "coder", or not at all."""
    completions: tuple[str, ...] | None = ()
    """Patterns of the models that its server completes (`/completions`); the others are asked in a chat.  None: those
    that are known to be completed."""
    embedding_batch: int = 10
    """The most texts in one request for embeddings; 0: it cannot embed."""
    realtime_url: str = ""
    """Where its realtime models are; "" where it has none."""
    catalog: ModelCatalog = field(default=EMPTY, repr=False)
    """What is known of models."""
    identity: str = ""
    """What the state on disk knows it by: another key under the same name is another account."""
    rate_limiter: AccountRateLimiter = field(default_factory=AccountRateLimiter)
    wall_clock: Callable[[], float] = field(default=time.time, repr=False)

    known_models: frozenset[str] | None = field(default=None, repr=False)
    """What its server lists, once that has been asked; None before."""
    in_flight: int = 0
    cooldowns: dict[str, Cooldown] = field(default_factory=dict)
    """By model; the one for "" is for all of them."""
    last_error: str | None = None
    last_error_at: float | None = None
    """By the wall clock."""
    quota: str | None = None
    """What its server last said about its quota."""
    requests: int = 0
    failures: int = 0
    circuit_breaker: CircuitBreaker = field(default_factory=CircuitBreaker)
    _learned_concurrency: tuple[int, float] = (0, 0.0)

    def supports(self, model: str, task: Capability = "chat") -> bool:
        """Whether the operator lets this account serve the model, and it can."""
        able = {"chat": True, "embedding": self.embedding_batch > 0, "realtime": bool(self.realtime_url)}
        return able[task] and any(fnmatchcase(model, pattern) for pattern in self.models)

    def target(self, credential: Credential, model: str, carried: Headers = ()) -> UpstreamTarget:
        """Whom a request for the model goes to, and with which further header fields."""
        return UpstreamTarget(
            credential.base_url,
            model,
            credential.token,
            self.provider_family,
            self.plan,
            (*self.headers, *carried),
            self.tool_schema,
            self._completes(model),
            self.catalog.get(model),
        )

    def _completes(self, model: str) -> bool:
        if self.completions is None:
            return self.catalog.get(model).is_for("completion")
        return any(fnmatchcase(model, pattern) for pattern in self.completions)

    def embedding_batch_for(self, model: str) -> int:
        """The most texts of one request for embeddings with the model."""
        known = self.catalog.get(model).embedding_batch if self.provider_family == "dashscope" else None
        return min(self.embedding_batch, known or self.embedding_batch)

    def lists(self, model: str) -> bool:
        """Whether its server has the model for all that is known: a list names it, or it is a server of one's own."""
        if self.known_models is not None:
            return model in self.known_models
        return self.provider_family == "open" and self.supports(model)

    def at_capacity(self, now: float) -> bool:
        """Whether it has as many requests as it may have at once."""
        limit, until = self._learned_concurrency
        if now < until and self.in_flight >= limit:
            return True
        return self.max_in_flight is not None and self.in_flight >= self.max_in_flight

    @property
    def load(self) -> float:
        return self.in_flight / self.weight

    def cooldown_until(self, model: str) -> float:
        """When it may be asked for the model again, while others can be asked."""
        return max((self.cooldowns[key].until for key in ("", model) if key in self.cooldowns), default=0.0)

    def state(self, now: float) -> str:
        """The state: ready, rate_limited, at_capacity, cooling_down or unavailable."""
        if self.circuit_breaker.wait(now):
            return "unavailable"
        if now < self.cooldown_until(""):
            return "cooling_down"
        return (
            "at_capacity"
            if self.at_capacity(now)
            else "rate_limited"
            if self.rate_limiter.wait(1, now)
            else "ready"
        )

    def before_request(self, model: str, now: float) -> None:
        """A request goes out; where a rest is over it is the probe, and the others wait for what it hears."""
        self.circuit_breaker.before_request(now)
        self.in_flight += 1
        self.requests += 1
        for key in ("", model):
            cooldown = self.cooldowns.get(key)
            if cooldown is not None and now >= cooldown.until:
                self.cooldowns[key] = replace(cooldown, until=now + PROBE_SECONDS, probing=True)

    def record_failure(self, error: QproxyError, now: float, model: str = "", *, again: bool = False) -> None:
        """Remember what an upstream's error says about the account rather than about the request.

        `again`: the same request has failed with it before.
        """
        self.circuit_breaker.record_result(error, now, again=again)
        self.failures += 1
        wall_clock = self.wall_clock()
        self.last_error, self.last_error_at = f"{error.status} {error.code or error.type}", wall_clock
        limit = cooldown_rules.classify(error)
        if limit is LimitKind.NONE:
            return
        key = cooldown_rules.cooldown_scope(limit, self.plan, model)
        before = self.cooldowns.get(key)
        strikes = 0 if before is None else before.failed_probes + before.probing
        cooldown = cooldown_rules.cooldown_for(error, limit, strikes, wall_clock).with_clock_offset(
            now - wall_clock
        )
        if before is None or before.probing or cooldown.until > before.until:
            self.cooldowns[key] = cooldown
            self._drop_one_cooldown()
        if limit is LimitKind.MINUTE and getattr(error, "retry_after_hint", None) is None:
            error.retry_after = cooldown.until - now  # for the client: the error itself knows no clock
        elif limit is LimitKind.CONCURRENCY:
            self._learned_concurrency = max(1, self.in_flight - 1), now + CONCURRENCY_BACKOFF_SECONDS
        elif limit in (LimitKind.QUOTA, LimitKind.FREE):
            self.quota = error.message[:MAX_ERROR_CHARACTERS]

    def record_success(self, model: str = "", since: float | None = None) -> None:
        """An answer has begun, to a request that was sent at `since`: what was said before that is over."""
        self.circuit_breaker.record_result(None, 0.0)
        for key in ("", model):
            cooldown = self.cooldowns.get(key)
            if cooldown is not None and (since is None or since >= cooldown.since):
                del self.cooldowns[key]
                if cooldown.reason in (LimitKind.QUOTA.value, LimitKind.FREE.value):
                    self.quota = None

    def token_refreshed(self) -> None:
        """It has a new token: what was said about the old one is over."""
        cooldown = self.cooldowns.get("")
        if cooldown is not None and cooldown.reason == LimitKind.ACCESS.value:
            del self.cooldowns[""]

    def _drop_one_cooldown(self) -> None:
        """Keep the rests few: the one that ends first goes, as it does where it is over already."""
        if len(self.cooldowns) > MAX_COOLDOWNS:
            oldest = min((key for key in self.cooldowns if key), key=lambda key: self.cooldowns[key].until)
            del self.cooldowns[oldest]
