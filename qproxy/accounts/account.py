"""The settings and the state of one upstream account.

An error or a success changes the state here; `selection` chooses an account, `cooldowns` computes how long
one is avoided. No account is excluded for good: whatever the upstream returned, the account is used again,
and one success ends its cooldown. Times are Trio's clock; the wall clock is read only when a cooldown starts,
because upstreams name calendar times.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Literal, TypeAlias

from qproxy.accounts import cooldowns as cooldown_rules
from qproxy.accounts.condition import (
    FAILED,
    MAX_RESULTS,
    SUCCEEDED,
    AccountCondition,
    AccountHistory,
    LoginState,
    condition_of,
)
from qproxy.accounts.cooldowns import PROBE_SECONDS, Cooldown
from qproxy.accounts.learned_rules import LearnedRules
from qproxy.accounts.rate_limit import AccountRateLimiter
from qproxy.auth import Credential, CredentialSource, OAuthSource
from qproxy.limits.circuit_breaker import CircuitBreaker
from qproxy.telemetry.redaction import Redactor
from qproxy.wire.dialects import UpstreamTarget
from qproxy.wire.errors import LimitKind, QproxyError
from qproxy.wire.http_request import Headers
from qproxy.wire.models import ModelCatalog
from qproxy.wire.models.catalog import EMPTY

Capability: TypeAlias = Literal[
    "chat",
    "embedding",
    "realtime",
    "multimodal_embedding",
    "rerank",
    "speech",
    "transcription",
    "image",
    "moderation",
    "decision",
    "file",
    "batch",
]
"""A task that an account may support."""
MAX_COOLDOWNS = 200
"""Maximum number of cooldowns of single models: the names come from clients."""
RECHECKED = frozenset(
    kind.value for kind in (LimitKind.QUOTA, LimitKind.FREE, LimitKind.ACCESS, LimitKind.MODEL)
)
"""Reasons of cooldowns that an owner or an upstream may end early."""
CONCURRENCY_BACKOFF_SECONDS = 60.0
"""Seconds for which a concurrency limit learned from the upstream is kept."""
MAX_ERROR_CHARACTERS = 300
MAX_SERVED_MODELS = 200
"""Maximum number of names that an account is known to have served: clients choose them."""


@dataclass(eq=False, slots=True)
class Account:
    """An upstream account: its settings and its state."""

    name: str
    source: CredentialSource = field(repr=False)
    provider_family: str = "dashscope"
    plan: str = "payg"
    dialect: str = "compatible"
    models: tuple[str, ...] = ("*",)
    """Patterns of the models that the account serves."""
    weight: float = 1.0
    max_in_flight: int | None = None
    allowance: Mapping[str, int] = field(default_factory=dict, repr=False)
    """Requests that the plan allows, by window."""
    rules: Mapping[str, bool] = field(default_factory=dict, repr=False)
    headers: Headers = field(default=(), repr=False)
    tool_schema: str = "openai"
    render_tools: str = ""
    """Format of tools in the prompt: "auto", "hermes", "coder"; empty if they are not written into it."""
    completions: tuple[str, ...] | None = ()
    """Patterns of the models sent to `/completions` (others use chat); None: those known to support it."""
    embedding_batch: int = 10
    """Maximum texts per embedding request; 0 if embeddings are not supported."""
    realtime_url: str = ""
    """URL of the realtime API; empty if there is none."""
    flex_url: str = ""
    """Base URL of the flex tier; empty if there is none."""
    tasks: frozenset[str] | None = None
    """Tasks beside chat, embeddings and realtime sessions; None for any."""
    catalog: ModelCatalog = field(default=EMPTY, repr=False)
    """Metadata of models."""
    identity: str = ""
    """Name in the shared state: another key under the same account name is another account."""
    rate_limiter: AccountRateLimiter = field(default_factory=AccountRateLimiter)
    wall_clock: Callable[[], float] = field(default=time.time, repr=False)
    on_event: Callable[[], None] = field(default=lambda: None, repr=False)
    """Called when other processes should know at once what has happened."""
    redact: Callable[[str], str] = field(default=Redactor().text, repr=False)
    """Hides secrets in the upstream's messages, which are stored and shown."""

    known_models: frozenset[str] | None = field(default=None, repr=False)
    """Models that the upstream lists; None until they are known."""
    served_models: set[str] = field(default_factory=set, repr=False)
    """Models with a successful request, whether they are listed or not."""
    in_flight: int = 0
    in_flight_elsewhere: int = 0
    """Requests of other processes, as far as they have reported them: for display."""
    cooldowns: dict[str, Cooldown] = field(default_factory=dict)
    """By model; "" is the cooldown of the whole account."""
    last_error: str | None = None
    last_error_at: float | None = None
    """Unix time."""
    last_message: str | None = None
    """The redacted message of the last error."""
    last_success_at: float | None = None
    last_fault_at: float | None = None
    """When a failure of the account itself, rather than of a request or a model, was last seen."""
    failed_model: str | None = None
    """The model of that failure, with which the account is probed."""
    results: str = ""
    """The last results (`condition.AccountHistory`)."""
    result_count: int = 0
    """Number of results so far."""
    successes: dict[str, float] = field(default_factory=dict, repr=False)
    """When the last request was sent whose success ended a cooldown, by the cooldown's key."""
    woken_at: float | None = None
    """When an operator last ended the cooldowns; Unix time."""
    quota: str | None = None
    """The upstream's last message about the quota."""
    requests: int = 0
    failures: int = 0
    learned_rules: LearnedRules = field(default_factory=LearnedRules, repr=False)
    """Request rules that rejections have taught."""
    circuit_breaker: CircuitBreaker = field(default_factory=CircuitBreaker)
    full_until: float = 0.0
    """Time until which `max_in_flight` is taken to be used up, by the requests of all processes."""
    _learned_concurrency: tuple[int, float] = (0, 0.0)

    def supports(self, model: str, task: Capability = "chat") -> bool:
        """Return whether the settings allow the model and the account supports the task."""
        capabilities = {
            "chat": True,
            "embedding": self.embedding_batch > 0,
            "realtime": bool(self.realtime_url),
        }
        able = capabilities.get(task, self.tasks is None or task in self.tasks)
        return able and any(fnmatchcase(model, pattern) for pattern in self.models)

    def target(self, credential: Credential, model: str, trace_headers: Headers = ()) -> UpstreamTarget:
        """Return the target of a request for the model, with additional headers."""
        return UpstreamTarget(
            credential.base_url,
            model,
            credential.token,
            self.provider_family,
            self.plan,
            (*self.headers, *trace_headers),
            self.tool_schema,
            self._completes(model),
            self.catalog.get(model),
            native=self.dialect == "dashscope",
        )

    def _completes(self, model: str) -> bool:
        if self.completions is None:
            return self.catalog.get(model).is_for("completion")
        return any(fnmatchcase(model, pattern) for pattern in self.completions)

    def embedding_batch_for(self, model: str) -> int:
        """Return the maximum texts per embedding request with the model."""
        known = self.catalog.get(model).embedding_batch if self.provider_family == "dashscope" else None
        return min(self.embedding_batch, known or self.embedding_batch)

    def lists(self, model: str) -> bool:
        """Return whether the upstream is known to have the model: it lists it, or it is self-hosted."""
        if self.known_models is not None:
            return model in self.known_models
        return self.provider_family == "open" and self.supports(model)

    def names(self, model: str) -> bool:
        """Return whether the settings or the upstream's list name the model, rather than any model."""
        if self.known_models is not None and model in self.known_models:
            return True
        return any(pattern.strip("*?") and fnmatchcase(model, pattern) for pattern in self.models)

    def at_capacity(self, now: float) -> bool:
        """Return whether the account is at its concurrency limit."""
        limit, until = self._learned_concurrency
        if now < until and self.in_flight >= limit:
            return True
        if self.max_in_flight is None:
            return False
        return self.in_flight >= self.max_in_flight or now < self.full_until

    @property
    def load(self) -> float:
        return self.in_flight / self.weight

    def cooldown_until(self, model: str) -> float:
        """Return the time until which other accounts are preferred for the model."""
        return max((self.cooldowns[key].until for key in ("", model) if key in self.cooldowns), default=0.0)

    def recheck_order(self, model: str) -> tuple[bool, float] | None:
        """Return the sort key for an early probe during a cooldown, None if it would be useless.

        A quota may be topped up and a key replaced at any time; a rate limit ends by time alone, and a probe
        that is in progress needs no second one. A missing model is the least likely to appear; the oldest
        knowledge comes first.
        """
        cooldowns = [self.cooldowns[key] for key in ("", model) if key in self.cooldowns]
        if any(item.probing or item.reason not in RECHECKED for item in cooldowns):
            return None
        missing = any(item.reason == LimitKind.MODEL.value for item in cooldowns)
        return missing, max((item.since for item in cooldowns), default=0.0)

    def login_state(self) -> LoginState | None:
        """Return the state of the account's tokens, None for a key."""
        if not isinstance(self.source, OAuthSource):
            return None
        status = self.source.status()
        return LoginState(status.state, status.message, status.usable, status.expires_at)

    @property
    def history(self) -> AccountHistory:
        """Return what is known from the results of requests."""
        cause = f"{self.last_error}: {self.last_message}" if self.last_message else self.last_error
        return AccountHistory(self.last_success_at, self.last_fault_at, cause, self.results)

    @property
    def is_failing(self) -> bool:
        """Return whether the account has failed since its last success, as `history` does."""
        if self.last_fault_at is None:
            return False
        return self.last_success_at is None or self.last_fault_at > self.last_success_at

    def condition(self, now: float) -> AccountCondition:
        """Return the account's state and its cause."""
        wall_clock = self.wall_clock()
        cooldown, pause = self.cooldowns.get(""), self.circuit_breaker.wait(now)
        return condition_of(
            self.history,
            wall_clock,
            login=self.login_state(),
            cooldown=None if cooldown is None else cooldown.with_clock_offset(wall_clock - now),
            retry_at=wall_clock + pause if pause else 0.0,
            at_capacity=self.at_capacity(now),
            rate_limited=bool(self.rate_limiter.wait(1, now)),
        )

    def rule_switches(self, model: str, defaults: Mapping[str, bool]) -> Mapping[str, bool]:
        """Return the switches of request rules: learned ones, `defaults`, and the account's own."""
        return {**self.learned_rules.for_model(model, self.wall_clock()), **defaults, **self.rules}

    def before_request(self, model: str, now: float) -> Mapping[str, Cooldown]:
        """Count a request; after expired cooldowns, which are returned, it is the probe, and others wait for
        its result."""
        self.circuit_breaker.before_request(now)
        self.in_flight += 1
        self.requests += 1
        probed = {}
        for key in ("", model):
            cooldown = self.cooldowns.get(key)
            if cooldown is not None and now >= cooldown.until:
                probed[key] = replace(cooldown, until=now + PROBE_SECONDS, probing=True)
        self.cooldowns.update(probed)
        return probed

    def record_failure(self, error: QproxyError, now: float, model: str = "", *, again: bool = False) -> None:
        """Record an upstream error that is about the account rather than about the request.

        `again`: the same request has failed on this account before.
        """
        health = self.is_failing, self.circuit_breaker.open_until
        self.circuit_breaker.record_result(error, now, again=again)
        self.failures += 1
        wall_clock = self.wall_clock()
        self.last_error, self.last_error_at = f"{error.status} {error.code or error.type}", wall_clock
        self.last_message = self.redact(error.message)[:MAX_ERROR_CHARACTERS]
        limit = cooldown_rules.classify(error)
        self._record_result(error, limit, model, wall_clock)
        if limit is not LimitKind.NONE or health != (self.is_failing, self.circuit_breaker.open_until):
            self.on_event()
        if limit is LimitKind.NONE:
            return
        key = cooldown_rules.cooldown_scope(limit, self.plan, model)
        before = self.cooldowns.get(key)
        failed_probes = 0 if before is None else before.failed_probes + before.probing
        cooldown = cooldown_rules.cooldown_for(error, limit, failed_probes, wall_clock).with_clock_offset(
            now - wall_clock
        )
        if before is None or before.probing or cooldown.until > before.until:
            self.cooldowns[key] = cooldown
            self._drop_one_cooldown()
        else:
            self.cooldowns[key] = replace(before, since=cooldown.since)
        if limit is LimitKind.MINUTE and getattr(error, "retry_after_hint", None) is None:
            error.retry_after = cooldown.until - now  # for the client: the error itself knows no clock
        elif limit is LimitKind.CONCURRENCY:
            self._learned_concurrency = max(1, self.in_flight - 1), now + CONCURRENCY_BACKOFF_SECONDS
        elif limit in (LimitKind.QUOTA, LimitKind.FREE):
            self.quota = self.last_message

    def _record_result(self, error: QproxyError, limit: LimitKind, model: str, wall_clock: float) -> None:
        """Record a failure, unless it may be the request's own, and whether the account is at fault."""
        is_fault = cooldown_rules.is_fault(error, limit)
        if is_fault or limit is not LimitKind.NONE:
            self.results = (self.results + FAILED)[-MAX_RESULTS:]
            self.result_count += 1
        if is_fault:
            self.failed_model = model
        elif (
            limit not in (LimitKind.MODEL, LimitKind.FREE)
            or self.last_success_at is not None
            or self.cooldowns
        ):
            return  # otherwise nothing shows that another model would be served
        self.last_fault_at = wall_clock
        if self.last_success_at is not None and wall_clock <= self.last_success_at:  # the clock was set back
            self.last_fault_at = math.nextafter(self.last_success_at, math.inf)

    def record_success(self, model: str = "", since: float | None = None) -> None:
        """End the cooldowns that started before a request, sent at `since`, that now has a response."""
        if self.cooldowns or self.circuit_breaker.open_until or self.is_failing:
            self.on_event()
        self.circuit_breaker.record_result(None, 0.0)
        self.last_success_at = now = self.wall_clock()
        if self.last_fault_at is not None and self.last_fault_at > now:  # the clock was set back
            self.last_success_at = self.last_fault_at
        self.results = (self.results + SUCCEEDED)[-MAX_RESULTS:]
        self.result_count += 1
        if model not in self.served_models and len(self.served_models) < MAX_SERVED_MODELS:
            self.served_models.add(model)
        for key in ("", model):
            cooldown = self.cooldowns.get(key)
            if cooldown is not None and (since is None or since >= cooldown.since):
                del self.cooldowns[key]
                self.successes[key] = math.inf if since is None else since
                if cooldown.reason in (LimitKind.QUOTA.value, LimitKind.FREE.value):
                    self.quota = None

    def token_refreshed(self) -> None:
        """End a cooldown that was about the previous token."""
        cooldown = self.cooldowns.get("")
        if cooldown is not None and cooldown.reason == LimitKind.ACCESS.value:
            del self.cooldowns[""]
            self.on_event()

    def wake(self, at: float, clock_offset: float) -> None:
        """End the cooldowns that started before `at`, and close the circuit: the operator removed the cause.

        `at` is Unix time, `clock_offset` what Unix time is ahead of Trio's clock.
        """
        self.woken_at = at
        for key, cooldown in list(self.cooldowns.items()):
            if cooldown.since + clock_offset <= at:
                del self.cooldowns[key]
        self.circuit_breaker = CircuitBreaker()
        self._learned_concurrency = (0, 0.0)
        self.quota = None
        self.on_event()

    def _drop_one_cooldown(self) -> None:
        """Drop the cooldown that ends first if there are too many."""
        if len(self.cooldowns) > MAX_COOLDOWNS:
            oldest = min((key for key in self.cooldowns if key), key=lambda key: self.cooldowns[key].until)
            del self.cooldowns[oldest]
