"""What the server stands on, and how its routes are told: read by every family of routes, changed by `app` alone.

Here: the parts, and what follows from all of them together (how the server and its accounts are).  Not here: how they
are made (`serving`, `watching`), what a request does with them (`asking`, `charging`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import trio

from qproxy.access.budgets import BudgetTracker
from qproxy.access.client_address import TrustedProxies
from qproxy.access.grants import Grants
from qproxy.access.rate_limits import KeyRateLimiters, RateLimitStore
from qproxy.access.secret_limiter import SecretLimiter
from qproxy.accounts import Account
from qproxy.auth.background import RefreshTasks
from qproxy.auth.login_sessions import LoginSessions
from qproxy.auth.oauth_source import OAuthSource
from qproxy.backends.local.grants import SQLiteGrants
from qproxy.ledger import Pricing, UsageLedger
from qproxy.limits.concurrency import ConcurrencyLimiter
from qproxy.relay import ToolRuntime
from qproxy.relay.model_directory import ModelDirectory
from qproxy.relay.realtime import RealtimeConfig
from qproxy.relay.relay import Relay
from qproxy.server.health import Health, health
from qproxy.server.in_flight import InFlightRequests
from qproxy.server.request_policy import Access, RequestPolicy
from qproxy.server.response_store import ResponseStore
from qproxy.telemetry import RequestCounters
from qproxy.telemetry.body_log import BodyLogger


@dataclass(frozen=True, slots=True)
class Route:
    """One path and who may use it."""

    path: str
    """As Quart writes it: `/models/<path:name>`."""
    methods: tuple[str, ...]
    view: Callable[..., Awaitable[Any]]
    access: Access = Access.KEY
    versioned: bool = True
    """Whether it is OpenAI's: served under `/v1` and without."""
    websocket: bool = False
    """Whether it is asked for by a WebSocket's handshake; it has no methods then."""
    fast_path: bool = False
    """Whether its view knows nothing of Quart and gives a `Reply`, so that the lane can take it."""

    def paths(self) -> list[str]:
        """The paths that lead to it."""
        return [f"/v1{self.path}", self.path] if self.versioned else [self.path]


class RouteGroup(Protocol):
    """Some routes that belong together."""

    def routes(self) -> Iterable[Route]: ...


class ServerState:
    """The parts of a running server; a reload changes them between two requests, so they are asked each time."""

    def __init__(
        self,
        relay: Relay,
        discovery: ModelDirectory,
        policy: RequestPolicy,
        admission: ConcurrencyLimiter | None = None,
    ) -> None:
        self.relay = relay
        self.model_directory = discovery
        self.policy = policy
        self.concurrency = admission or ConcurrencyLimiter()
        self.responses: ResponseStore | None = None
        """Where responses are kept; None keeps none."""
        self.tool_runtime = ToolRuntime()
        """The tools that this server runs."""
        self.counters = RequestCounters()
        self.in_flight = InFlightRequests()
        self.rate_limits = KeyRateLimiters()
        self.proxies = TrustedProxies()
        self.limit_secrets(SQLiteGrants())
        self.refresh_tasks = RefreshTasks()
        self.login_sessions = LoginSessions(self.refresh_tasks)
        self.realtime = RealtimeConfig()
        """How realtime sessions are."""
        self.pricing = Pricing()
        self.ledger: UsageLedger | None = None
        self.budgets = BudgetTracker(None)
        self.body_logger: BodyLogger | None = None
        """Where requests and answers are logged; nowhere unless the operator asks for it."""
        self.draining = False

    def limit_secrets(self, grants: Grants, store: RateLimitStore | None = None, per_minute: int = 0) -> None:
        """Limit the wrong keys of an address; without a number there is no limit."""
        self.grants = grants
        self.client_keys = SecretLimiter("client key", per_minute, grants, store)
        self.admin_keys = SecretLimiter("admin key", per_minute, grants, store)

    def health(self) -> Health:
        """Whether the server can do its work."""
        return health(self.account_states().values(), draining=self.draining)

    def account_states(self) -> dict[str, str]:
        """One word for each account, by its name: how it serves, or why it cannot be spoken as."""
        now = trio.current_time()
        return {account.name: _state(account, now) for account in self.relay.accounts.accounts}


def _state(account: Account, now: float) -> str:
    if isinstance(account.source, OAuthSource):
        status = account.source.status()
        if not status.usable:
            return status.state
    return account.state(now)
