"""From a `Config` to a server that runs: the parts are put together here and nowhere else.

assemble(config)   the parts, for tests and for programs that embed
create_app(config) the ASGI app
serve(config)      within a Trio program: `await nursery.start(qproxy.serve, config)` gives the bound URLs
"""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable, Sequence
from fnmatch import fnmatchcase
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import trio

from qproxy import http_server
from qproxy.access.api_keys import ApiKeyStore, KeyFileError, keys_from_settings
from qproxy.access.client_address import UNIX, TrustedProxies
from qproxy.access.rate_limits import KeyRateLimiters
from qproxy.accounts import Account, AccountPool
from qproxy.accounts.rate_limit import AccountRateLimiter
from qproxy.accounts.sync import AccountStateSync
from qproxy.auth import CredentialSource, StaticKey
from qproxy.backends.local.account_state import SqliteAccountState
from qproxy.backends.local.grants import SQLiteGrants
from qproxy.backends.local.rate_limits import FileRateLimits
from qproxy.backends.local.responses import SqliteResponseStore
from qproxy.bootstrap import (
    auth,
    telemetry,
)
from qproxy.bootstrap import (
    tools as toolmaking,
)
from qproxy.bootstrap import (
    transport as outbound,
)
from qproxy.bootstrap.tools import ToolLike
from qproxy.config import Config, load
from qproxy.config.accounts import AccountConfig, ConfigError
from qproxy.http_server.shutdown import FAREWELL_SECONDS, current_shutdown, drain
from qproxy.limits.concurrency import ConcurrencyLimiter
from qproxy.relay.model_directory import ModelDirectory
from qproxy.relay.realtime import RealtimeConfig, SessionLimits
from qproxy.relay.relay import Relay, RelayPolicy
from qproxy.sandbox import SystemSandbox
from qproxy.server import Server
from qproxy.server.request_policy import RequestPolicy
from qproxy.server.response_store import ResponseStore
from qproxy.transport import ConnectFunction, UpstreamTransport
from qproxy.wire.dialects import model_catalog, request_rules
from qproxy.wire.model_aliases import Aliases
from qproxy.wire.tool_calls import ModelProfile

MAX_STREAMS = 250
"""Of one HTTP/2 connection at once."""
MEMORY_BYTES = 64 * 1024 * 1024
"""Of responses that are kept in memory."""
TOOL_SETTINGS = (
    "tools", "mcp_servers", "tool_offers", "tool_rounds", "tool_programs", "tool_memory_seconds", *outbound.SETTINGS,
)  # fmt: skip
STORE_SETTINGS = (
    "store_responses", "responses_file", "responses_max_age", "responses_max_bytes", "store_timeout",
)  # fmt: skip
log = logging.getLogger("qproxy")


def build_server(
    config: Config,
    *,
    connect: ConnectFunction | None = None,
    tools: Sequence[ToolLike] = (),
    sandbox: SystemSandbox | None = None,
    workers_directory: Path | None = None,
) -> Server:
    """The server's parts, wired together.

    `connect(host, port)` gives the streams to upstreams, for programs with a network of their own; `tools` are such a
    program's functions that models may call, `site` its way to a sandbox.  `meeting` is where a worker's siblings are.
    """
    server = _with_parts(config, connect or trio.open_tcp_stream, tools, sandbox)
    server.preparations.append(partial(_apply_limits, config))
    server.background.append(partial(drain, server, config.graceful_timeout))
    telemetry.add_telemetry(server, config, workers_directory)
    if config.meters_file:
        server.rate_limits = KeyRateLimiters(FileRateLimits(Path(config.meters_file)))
    store = FileRateLimits(Path(config.wrong_keys_file)) if config.wrong_keys_file else None
    grants = SQLiteGrants(Path(config.access_file) if config.access_file else None)
    server.limit_secrets(grants, store, config.wrong_keys_per_minute)
    if config.accounts_file:
        server.relay.accounts.sharing = AccountStateSync(SqliteAccountState(Path(config.accounts_file)))
        server.background.append(server.relay.accounts.keep_sharing)
    return server


def _with_parts(
    config: Config,
    connect: ConnectFunction,
    tools: Sequence[ToolLike] = (),
    sandbox: SystemSandbox | None = None,
) -> Server:
    known = {rule.name for rule in request_rules.RULES}
    unknown = {
        name for table in (config.rules, *(a.rules for a in config.accounts)) for name in table
    } - known
    if unknown:
        raise ConfigError(
            f"rules: there is no rule {', '.join(sorted(unknown))}; there are {', '.join(sorted(known))}."
        )
    accounts = [_account(entry, config, connect) for entry in config.all_accounts()]
    server = _build(config, accounts, outbound.build_transport(config, connect), _store(config))
    server.workshop = toolmaking.build_tool_runtime(config, tools, sandbox)
    return server


def rebuild_server(config: Config, before: Config, server: Server) -> Server:
    """The parts for another configuration; what its settings do not change is that of the running server."""
    state, known = _with_parts(config, trio.open_tcp_stream), before.all_accounts()
    running = dict(zip((entry.name for entry in known), server.relay.accounts.accounts, strict=True))
    same_signing = all(getattr(config, name) == getattr(before, name) for name in auth.SETTINGS)
    same = {e.name for e in config.all_accounts() if e in known and (e.kind != "oauth" or same_signing)}
    accounts = [running[a.name] if a.name in same else a for a in state.relay.accounts.accounts]
    kept_by = {
        names: server if all(getattr(config, n) == getattr(before, n) for n in names) else state
        for names in (outbound.SETTINGS, STORE_SETTINGS, TOOL_SETTINGS)
    }
    transport, store = kept_by[outbound.SETTINGS].relay.transport, kept_by[STORE_SETTINGS].responses
    made = _build(config, accounts, transport, store)
    made.workshop = kept_by[TOOL_SETTINGS].workshop
    return made


def _build(
    config: Config, entries: Sequence[Account], transport: UpstreamTransport, store: ResponseStore | None
) -> Server:
    accounts = AccountPool(entries, queue_timeout=config.queue_timeout, max_waiting=config.max_waiting)
    aliases = _aliases(config, entries)
    policy = RelayPolicy(
        aliases=aliases,
        rule_switches=config.rules,
        strict_params=config.strict_params,
        forced_tools=config.forced_tools,
        stream_upstream=config.stream_upstream,
        embedding_requests=config.embedding_requests,
        profile=lru_cache(maxsize=256)(partial(_model_profile, config)),
    )
    discovery = ModelDirectory(
        accounts.accounts,
        transport,
        cache_seconds=config.models_cache_seconds,
        aliases=aliases,
        extra=config.models,
    )
    door = RequestPolicy(
        api_keys=_api_keys(config),
        allowed_hosts=tuple(config.allowed_hosts),
        max_json_depth=config.max_json_depth,
        cors_origins=tuple(config.cors_origins),
        max_body_bytes=config.max_body_bytes,
        max_messages=config.max_messages,
        body_timeout=config.body_timeout,
        request_timeout=config.request_timeout or math.inf,
        keep_alive_interval=config.keep_alive_interval or math.inf,
        default_model=config.default_model,
        aliases=aliases,
        admin_key=config.admin_key,
        insecure_no_auth=config.insecure_no_auth,
    )
    admission = ConcurrencyLimiter(
        config.max_requests, line=config.max_waiting, patience=config.queue_timeout
    )
    server = Server(Relay(accounts, transport, policy), discovery, door, admission)
    server.body_logger, server.pricing = telemetry.build_body_logger(config), telemetry.build_pricing(config)
    server.responses = store
    server.proxies = _proxies(config)
    server.speech = RealtimeConfig(_session_limits(config), config.realtime_voices)
    return server


def _aliases(config: Config, accounts: Sequence[Account]) -> Aliases:
    """The settings' aliases; a model that they or an account name, or that is Qwen's own, is left to itself by `*`."""
    named = {*config.models, *(name for account in accounts for name in account.models)}
    dashscope = any(account.provider_family == "dashscope" for account in accounts)
    return Aliases(config.aliases, lambda name: name in named or (dashscope and model_catalog.is_qwen(name)))


def _session_limits(config: Config) -> SessionLimits:
    return SessionLimits(
        timeout=config.realtime_timeout or math.inf,
        idle_timeout=config.realtime_idle_timeout or math.inf,
        ping_interval=config.realtime_ping_interval or math.inf,
        max_message_bytes=config.realtime_max_message_bytes,
    )


def _store(config: Config) -> ResponseStore | None:
    """Where responses are kept: in memory, and not as many, where no file is named."""
    if not config.store_responses:
        return None
    path = Path(config.responses_file) if config.responses_file else None
    return SqliteResponseStore(
        path,
        max_age=config.responses_max_age,
        max_bytes=config.responses_max_bytes if path else min(config.responses_max_bytes, MEMORY_BYTES),
        timeout=config.store_timeout,
    )


def _api_keys(config: Config) -> ApiKeyStore:
    """The clients' keys: those of the settings and those of the file."""
    try:
        return ApiKeyStore(
            keys_from_settings(config.api_keys), Path(config.keys_file) if config.keys_file else None
        )
    except KeyFileError as error:
        raise ConfigError(str(error)) from None


def _proxies(config: Config) -> TrustedProxies:
    """The proxies that may say for whom they ask."""
    try:
        return TrustedProxies(config.trusted_proxies)
    except ValueError as error:
        raise ConfigError(
            f"trusted_proxies: {error}. Name addresses, networks (10.0.0.0/8) or {UNIX!r} for Unix sockets."
        ) from None


def _model_profile(config: Config, model: str) -> ModelProfile:
    """How a model deviates, by the patterns of the settings."""
    model = model.lower()

    def listed(patterns: list[str]) -> bool:
        return any(fnmatchcase(model, pattern.lower()) for pattern in patterns)

    return ModelProfile(
        implied_think=listed(config.implied_think),
        cumulative=listed(config.cumulative),
        react=listed(config.react),
        bare_json=listed(config.bare_json),
    )


def _account(entry: AccountConfig, config: Config, connect: ConnectFunction | None) -> Account:
    assert entry.base_url is not None
    source: CredentialSource = StaticKey(entry.base_url, entry.key)
    if entry.kind == "oauth":
        source = auth.build_oauth_source(entry, config, connect)
    return Account(
        name=entry.name,
        source=source,
        provider_family="open" if entry.kind == "open" else "dashscope",
        plan=entry.plan or "payg",
        models=tuple(entry.models),
        weight=entry.weight,
        max_in_flight=entry.max_in_flight,
        allowance=entry.allowance,
        identity=entry.identity,
        rate_limiter=AccountRateLimiter(entry.rpm, entry.tpm),
        rules=entry.rules,
        headers=tuple((name.lower().encode(), value.encode()) for name, value in entry.headers.items()),
        dialect=entry.dialect,
        tool_schema=entry.tool_schema,
        render_tools=entry.render_tools,
        completions=tuple(entry.completions or ()),
        embedding_batch=entry.embedding_batch or 0,
        realtime_url=entry.realtime_url or "",
    )


def create_app(config: Config | None = None, *, tools: Sequence[ToolLike] = ()) -> Any:
    """The Quart-Trio app; without a config, from qproxy.toml and the environment.  `tools`: functions of yours."""
    config = config or load()
    config.for_app().check()
    return build_server(config, tools=tools).app()


async def serve(
    config: Config,
    *,
    shutdown_trigger: Callable[[], Awaitable[None]] | None = None,
    server: Server | None = None,
    tools: Sequence[ToolLike] = (),
    listener: int | None = None,
    task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until `shutdown_trigger` returns or the caller cancels; reports the bound URLs.  `tools`: as `assemble`.

    `listener`: the descriptor of a socket that listens already.
    """
    config.check()
    server = server or build_server(config, tools=tools)
    try:
        await http_server.serve(
            server.app(),
            host=config.host,
            port=config.port,
            listener=listener,
            certfile=config.certfile,
            keyfile=config.keyfile,
            shutdown_trigger=shutdown_trigger,
            task_status=task_status,
        )
    finally:  # a caller who cancels skips the app's own end
        with trio.CancelScope(shield=True):  # closing idle sockets cannot block; the store has its time limit
            await server.aclose()


def _apply_limits(config: Config) -> None:
    """Tell whatever serves the app, as far as it listens, how long requests have and which limits there are."""
    shutdown = current_shutdown.get()
    if shutdown is None:
        return
    shutdown.grace = config.graceful_timeout + FAREWELL_SECONDS
    if not isinstance(shutdown, http_server.Worker):
        return
    http_server.patch_hypercorn(
        write_timeout=config.client_write_timeout,
        max_connections=config.max_clients,
        max_age=config.max_connection_age or math.inf,
    )
    shutdown.configure(
        graceful_timeout=shutdown.grace,
        keep_alive_timeout=config.client_idle_timeout,
        h11_max_incomplete_size=config.max_header_bytes,
        h2_max_header_list_size=config.max_header_bytes,
        h2_max_concurrent_streams=MAX_STREAMS,
        websocket_ping_interval=config.realtime_ping_interval or None,
        websocket_max_message_size=config.realtime_max_message_bytes,
        include_server_header=False,
    )
