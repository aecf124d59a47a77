"""The parts of a server as one frozen record, and the declaration of its routes.

`bootstrap` builds the record whole. A reload builds another one from it and the server swaps the two in one
assignment (`Server.reconfigure`), so routes read `server.state` once per request.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import trio

from qproxy.access.client_address import TrustedProxies
from qproxy.access.grants import GrantStore
from qproxy.access.secret_limiter import SecretLimiter
from qproxy.access.usage_limiter import UsageLimiter
from qproxy.accounts.condition import AccountCondition
from qproxy.accounts.pool import PoolSettings
from qproxy.auth.background import RefreshTasks
from qproxy.auth.credential_store import CredentialStore
from qproxy.auth.login_sessions import LoginSessions
from qproxy.http_server.limits import HttpServerLimits
from qproxy.ledger import Pricing, UsageLedger
from qproxy.limits.concurrency import ConcurrencyLimiter
from qproxy.relay import ToolRuntime
from qproxy.relay.account_probe import AccountProber
from qproxy.relay.compaction import Compactor
from qproxy.relay.model_directory import ModelDirectory
from qproxy.relay.realtime import RealtimeConfig
from qproxy.relay.relay import Relay
from qproxy.relay.tokenizers import Tokenizers
from qproxy.server.authentication import Access, Authentication
from qproxy.server.background_runs import BackgroundRuns
from qproxy.server.batch_runner import BatchRunner
from qproxy.server.batch_store import BatchStore
from qproxy.server.completion_store import CompletionStore
from qproxy.server.conversation_store import ConversationStore
from qproxy.server.cors import CorsPolicy
from qproxy.server.file_store import FileStore
from qproxy.server.health import Health, health
from qproxy.server.in_flight import InFlightRequests
from qproxy.server.replicas import Replica, SharedStateMonitor, list_replicas, this_replica
from qproxy.server.request_body import RequestLimits
from qproxy.server.response_runs import ResponseRunStore
from qproxy.server.response_socket import ResponseSocketLimits
from qproxy.server.response_store import ResponseStore
from qproxy.server.stores import ResponseStores
from qproxy.server.stream_recorder import StreamRecorder
from qproxy.server.upload_store import UploadStore
from qproxy.telemetry import RequestCounters, TracerProtocol
from qproxy.telemetry.audit import AuditLog
from qproxy.telemetry.body_log import BodyLogger
from qproxy.telemetry.counters import Listener
from qproxy.telemetry.peers import Peers
from qproxy.wire.endpoints import Api, Endpoint
from qproxy.wire.events import JSON

BackgroundTask: TypeAlias = Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Route:
    """One path and who may use it."""

    path: str
    """In Quart's notation: `/models/<path:name>`."""
    methods: tuple[str, ...]
    view: Callable[..., Awaitable[Any]]
    access: Access = Access.KEY
    versioned: bool = True
    """Whether it belongs to OpenAI's API: served with and without `/v1`."""
    websocket: bool = False
    """Whether it is opened by a WebSocket handshake; it has no methods then."""
    api: Api | None = None
    """Whose errors and headers it has; None chooses by the request (`find_api`)."""
    operation: str = ""
    """`gen_ai.operation.name` for metrics and traces, if it sends requests to a model."""
    schema: JSON | None = None
    """JSON Schema of a request's body, if it reads one."""
    form: bool = False
    """Whether that body is a form with files instead of JSON."""
    streams: bool = False
    """Whether its responses come whole or as a stream."""
    fast_path: bool = False
    """Whether its view is independent of Quart and returns an `HTTPResponse`, so that the fast path can serve
    it."""

    def paths(self) -> list[str]:
        """Return the paths that lead to it."""
        return [f"/v1{self.path}", self.path] if self.versioned else [self.path]


class RouteGroup(Protocol):
    """Routes that belong together."""

    def routes(self) -> Iterable[Route]: ...


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class ServerState:
    """The parts of a running server."""

    http_limits: HttpServerLimits
    root_path: str
    """Path under which a reverse proxy serves the app, "" for none."""

    # Who may use the server.
    authentication: Authentication
    cors: CorsPolicy
    trusted_proxies: TrustedProxies
    grants: GrantStore
    client_keys: SecretLimiter
    admin_keys: SecretLimiter
    metrics_access: Access

    # What one request may take.
    request_limits: RequestLimits
    concurrency: ConcurrencyLimiter
    usage_limiter: UsageLimiter

    # How requests are served.
    endpoints: tuple[Endpoint, ...]
    """The APIs that generate text."""
    relay: Relay
    pool_settings: PoolSettings
    """The accounts and limits that the pool (`relay.accounts`) uses from the swap on."""
    prober: AccountProber
    """Probes failing accounts, and tells which are down."""
    default_model: str | None
    """The model of requests that name none."""
    model_directory: ModelDirectory
    tokenizers: Tokenizers
    realtime: RealtimeConfig
    response_sockets: ResponseSocketLimits
    tool_runtime: ToolRuntime
    compactor: Compactor
    """Opens responses to conversations that are too long."""
    responses: ResponseStore | None
    """Stored responses; None when they are not stored."""
    conversations: ConversationStore | None
    completions: CompletionStore | None
    """None when responses are not stored, as for `response_runs`."""
    response_runs: ResponseRunStore | None
    open_stores: Callable[[Any], ResponseStores]
    """Opens these three for changed settings."""
    files: FileStore
    batches: BatchStore
    uploads: UploadStore
    batch_runner: BatchRunner
    background_runs: BackgroundRuns
    """The responses that this process generates in the background."""
    stream_recorder: StreamRecorder
    """Saves the events of stored responses that are streamed."""
    credential_opener: Callable[[Any], Callable[[Any], CredentialStore]]
    """Opens the stores of accounts' tokens for changed settings."""
    refresh_tasks: RefreshTasks
    login_sessions: LoginSessions

    # What is recorded.
    in_flight: InFlightRequests
    counters: RequestCounters
    listeners: tuple[Listener, ...]
    """Receive every finished request's record, after the metrics."""
    pricing: Pricing
    unpriced_models: str
    """Whether requests that cost an unknown amount are refused to keys with a budget in money."""
    ledger: UsageLedger | None
    redact: Callable[[str], str]
    """Hides the secrets of the settings, and what looks like one, in messages that are logged and stored."""
    body_logger: BodyLogger | None
    audit: AuditLog
    """Records changes of keys, accounts and settings."""
    tracer: TracerProtocol | None
    peers: Peers
    shared_state: SharedStateMonitor | None
    """None if no other machine shares anything."""

    startup: tuple[BackgroundTask, ...]
    """Waits of a moment for those tasks, before the first request is served."""
    background: tuple[BackgroundTask, ...]
    """Tasks of the parts that run for as long as the app is served."""

    def health(self) -> Health:
        """Return whether the server can serve requests."""
        now = trio.current_time()
        failing = [account for account in self.relay.accounts.accounts if account.history.is_failing]
        return health(
            self.account_states().values(),
            draining=self.in_flight.draining,
            failing_are_down=all(self.prober.is_down(account, now) for account in failing),
        )

    def replica(self) -> Replica:
        """Return this process, for the others."""
        return this_replica(len(self.counters.in_flight))

    async def replicas(self) -> tuple[Sequence[Replica], bool]:
        """Return the processes that serve together, and whether those of other machines are among them."""
        return await list_replicas(self.replica(), self.peers, self.shared_state)

    def account_states(self) -> dict[str, str]:
        """Return the state of every account, by name."""
        return {name: condition.state for name, condition in self.account_conditions().items()}

    def account_conditions(self) -> dict[str, AccountCondition]:
        """Return the state of every account and its cause, by name."""
        now = trio.current_time()
        return {account.name: account.condition(now) for account in self.relay.accounts.accounts}


class StateHolder(Protocol):
    """A server, as its routes and middleware see it."""

    state: ServerState
    """The current state; a reload replaces it between two requests."""
