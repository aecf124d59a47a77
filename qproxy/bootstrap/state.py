"""All parts of a server, wired together from a `Config`.

`build_state` builds them once, when the server starts. The other functions build single parts;
`bootstrap.reload` uses them for the parts that a reload renews.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from fnmatch import fnmatchcase
from functools import lru_cache, partial
from pathlib import Path

import trio

from qproxy.access.api_keys import ApiKeyStore
from qproxy.access.client_address import UNIX, TrustedProxies
from qproxy.access.secret_limiter import SecretLimiter
from qproxy.accounts import Account, AccountPool
from qproxy.accounts.shared_state import AccountStateStore
from qproxy.accounts.sync import AccountStateSync
from qproxy.auth.background import RefreshTasks
from qproxy.backends.factory import Backends, open_backends
from qproxy.backends.sealing import open_text_sealer
from qproxy.bootstrap import limits, telemetry
from qproxy.bootstrap.accounts import build_accounts, build_aliases
from qproxy.bootstrap.fallbacks import build_fallbacks
from qproxy.bootstrap.models import build_catalog
from qproxy.bootstrap.tools import ToolLike, build_tool_runtime
from qproxy.bootstrap.transport import build_transport
from qproxy.config import Config, data_dir
from qproxy.config.accounts import ConfigError
from qproxy.dashboard import end_stale_sessions
from qproxy.limits.concurrency import ConcurrencyLimiter
from qproxy.relay.account_probe import AccountProber
from qproxy.relay.compaction import Compactor
from qproxy.relay.flex import FlexPolicy
from qproxy.relay.model_directory import ModelDirectory
from qproxy.relay.model_lists import ModelListStore
from qproxy.relay.policy import RelayPolicy
from qproxy.relay.prompt_caching import PromptCachePolicy
from qproxy.relay.realtime import RealtimeConfig
from qproxy.relay.reasoning_store import ReasoningStore
from qproxy.relay.relay import Relay
from qproxy.relay.tokenizers import Tokenizers
from qproxy.sandbox import SystemSandbox
from qproxy.server import ServerState
from qproxy.server.authentication import Access, Authentication
from qproxy.server.background_runs import BackgroundRuns
from qproxy.server.batch_runner import BatchRunner
from qproxy.server.cors import CorsPolicy
from qproxy.server.host_policy import HostPolicy
from qproxy.server.in_flight import InFlightRequests
from qproxy.server.state import BackgroundTask
from qproxy.server.stream_recorder import StreamRecorder
from qproxy.telemetry import RequestCounters
from qproxy.telemetry.peers import Peers, find_peer_directory
from qproxy.transport import ConnectFunction, UpstreamTransport
from qproxy.wire.dialects import request_rules
from qproxy.wire.endpoints import ENDPOINTS, Endpoint
from qproxy.wire.models import ModelCatalog
from qproxy.wire.models.name_pattern import NamePattern
from qproxy.wire.prompt_cache import CachePlanner
from qproxy.wire.realtime import client_secret
from qproxy.wire.sealing import Sealer
from qproxy.wire.token_ratios import TokenRatios
from qproxy.wire.tool_calls import ModelProfile


def build_state(
    config: Config,
    *,
    connect: ConnectFunction = trio.open_tcp_stream,
    tools: Sequence[ToolLike] = (),
    sandbox: SystemSandbox | None = None,
    workers_directory: Path | None = None,
    backends: Backends | None = None,
    endpoints: Sequence[Endpoint] = ENDPOINTS,
) -> ServerState:
    """Build every part.  Raises ConfigError when the settings do not fit together; arguments as
    `build_server`."""
    check_rules(config)
    catalog = build_catalog(config.model_rows)
    pricing = telemetry.build_pricing(config, catalog)
    backends = backends or open_backends(config, pricing)
    accounts = build_accounts(config, connect, backends.credentials, catalog)
    transport = build_transport(config, connect)
    pool = build_account_pool(config, accounts, backends.account_state)
    ledger, grants, tracer = backends.ledger, backends.grants, telemetry.build_tracer(config)

    def limit_secrets(name: str) -> SecretLimiter:
        return SecretLimiter(name, config.wrong_keys_per_minute, grants, backends.wrong_secrets)

    relay = build_relay(
        config, accounts, pool, transport, catalog, backends.reasoning, TokenRatios(), CachePlanner()
    )
    prober = AccountProber(relay, max_delay=config.probe_interval)
    refresh_tasks, stream_recorder = RefreshTasks(), StreamRecorder()
    batch_runner = BatchRunner(
        backends.batches,
        backends.files,
        parallel=config.batch_parallel,
        max_line_bytes=config.max_body_bytes,
    )
    background: list[BackgroundTask] = [
        partial(end_stale_sessions, grants, config.admin_key),
        prober.run,
        stream_recorder.run,
        batch_runner.run,
        *backends.background,
    ]
    if ledger is not None:
        background.append(ledger.run)
    if tracer is not None:
        background.append(tracer.run)
    if pool.sync is not None:
        background.append(pool.run_sync)
    return ServerState(
        http_limits=limits.http_server_limits(config),
        authentication=build_authentication(
            config, accounts, backends.api_keys, catalog, open_text_sealer(config, client_secret.PREFIX)
        ),
        root_path=config.root_path,
        cors=CorsPolicy(tuple(config.cors_origins)),
        trusted_proxies=build_trusted_proxies(config),
        grants=grants,
        client_keys=limit_secrets("client key"),
        admin_keys=limit_secrets("admin key"),
        metrics_access=Access(config.metrics_access),
        request_limits=limits.request_limits(config),
        concurrency=build_concurrency(config),
        usage_limiter=backends.usage_limiter,
        endpoints=tuple(endpoints),
        relay=relay,
        pool_settings=limits.pool_settings(config, accounts, catalog),
        prober=prober,
        default_model=config.default_model,
        model_directory=build_model_directory(config, accounts, transport, catalog, backends.model_lists),
        tokenizers=Tokenizers(accounts, transport, timeout=config.tokenize_timeout),
        realtime=build_realtime(config, catalog),
        response_sockets=limits.response_socket_limits(config),
        tool_runtime=build_tool_runtime(config, tools, sandbox, backends.tool_rounds),
        compactor=Compactor(open_text_sealer(config), on_overflow=config.compact_on_overflow),
        responses=backends.responses,
        conversations=backends.conversations,
        completions=backends.completions,
        response_runs=backends.response_runs,
        open_stores=backends.open_stores,
        files=backends.files,
        batches=backends.batches,
        uploads=backends.uploads,
        batch_runner=batch_runner,
        background_runs=BackgroundRuns(),
        stream_recorder=stream_recorder,
        credential_opener=backends.credential_opener,
        refresh_tasks=refresh_tasks,
        login_sessions=backends.login_sessions(refresh_tasks),
        in_flight=InFlightRequests(),
        counters=RequestCounters(),
        listeners=telemetry.build_listeners(ledger, tracer),
        pricing=pricing,
        unpriced_models=config.unpriced_models,
        ledger=ledger,
        redact=telemetry.build_redact(config),
        audit=backends.audit,
        body_logger=telemetry.build_body_logger(config),
        tracer=tracer,
        peers=Peers(workers_directory or find_peer_directory(data_dir())),
        shared_state=backends.monitor,
        startup=backends.startup,
        background=tuple(background),
    )


def check_rules(config: Config) -> None:
    """Raise ConfigError for a rule that does not exist."""
    known = {rule.name for rule in request_rules.RULES}
    tables = (config.rules, *(account.rules for account in config.accounts))
    unknown = {name for table in tables for name in table} - known
    if unknown:
        raise ConfigError(
            f"rules: unknown rule {', '.join(sorted(unknown))}. Known rules: {', '.join(sorted(known))}."
        )


def build_account_pool(
    config: Config, accounts: Sequence[Account], store: AccountStateStore | None
) -> AccountPool:
    """Return the pool, which shares the accounts' state with other processes through the store."""
    return AccountPool(
        accounts,
        queue_timeout=config.queue_timeout,
        max_queue_size=config.max_queue_size,
        sharing=None if store is None else AccountStateSync(store),
    )


def build_authentication(
    config: Config,
    accounts: Sequence[Account],
    api_keys: ApiKeyStore,
    catalog: ModelCatalog,
    client_secrets: Sealer,
) -> Authentication:
    """Return the checks of keys and host names."""
    return Authentication(
        api_keys=api_keys,
        client_secrets=client_secrets,
        admin_key=config.admin_key,
        hosts=HostPolicy(allowed_hosts=tuple(config.allowed_hosts), insecure_no_auth=config.insecure_no_auth),
        aliases=build_aliases(config, accounts, catalog),
    )


def build_trusted_proxies(config: Config) -> TrustedProxies:
    """Return the proxies whose forwarding headers are believed."""
    try:
        return TrustedProxies(config.trusted_proxies)
    except ValueError as error:
        raise ConfigError(
            f"trusted_proxies: {error}. Use addresses, networks (10.0.0.0/8), or {UNIX!r} for Unix sockets."
        ) from None


def build_concurrency(config: Config) -> ConcurrencyLimiter:
    """Return the limit of concurrent requests to models."""
    return ConcurrencyLimiter(
        config.max_requests, max_queue_size=config.max_queue_size, queue_timeout=config.queue_timeout
    )


def build_relay(
    config: Config,
    accounts: Sequence[Account],
    pool: AccountPool,
    transport: UpstreamTransport,
    catalog: ModelCatalog,
    reasoning: ReasoningStore | None,
    token_ratios: TokenRatios,
    cache_planner: CachePlanner,
) -> Relay:
    """Return the relay to the accounts of a pool."""
    policy = RelayPolicy(
        aliases=build_aliases(config, accounts, catalog),
        rule_switches=config.rules,
        strict_params=config.strict_params,
        forced_tools=config.forced_tool_choice,
        stream_upstream=config.stream_upstream,
        retired_models=config.retired_models,
        flex=FlexPolicy(config.flex_timeout, config.flex_promotion_after),
        fallbacks=build_fallbacks(config),
        catalog=catalog,
        prompt_cache=build_prompt_cache(config, catalog),
        search_sources=config.web_search_sources,
        embedding_requests=config.max_embedding_requests,
        result_hosts=tuple(config.result_hosts),
        upload_hosts=tuple(config.upload_hosts),
        audio_translation_model=_translation_model(config, catalog),
        speech_voices=config.speech_voices,
        moderation_model=config.moderation_model,
        flags_controversial=config.moderation_flags_controversial,
        ffmpeg=None if config.ffmpeg == "none" else shutil.which(config.ffmpeg or "ffmpeg"),
        profile=lru_cache(maxsize=256)(partial(_model_profile, config, catalog)),
    )
    return Relay(pool, transport, policy, reasoning, token_ratios, cache_planner)


def build_prompt_cache(config: Config, catalog: ModelCatalog) -> PromptCachePolicy | None:
    """Return the settings of prompt caches; None where clients' breakpoints are forwarded as they are."""
    modes, allow_1h = config.prompt_cache_models, config.prompt_cache_1h
    unknown = set(modes.values()) - {"auto", "markers", "off"}
    if unknown:
        raise ConfigError(f"prompt_cache_models: {min(unknown)!r} is not one of auto, markers, off.")
    if {config.prompt_cache, *modes.values()} == {"markers"}:
        return None
    return PromptCachePolicy(
        mode=config.prompt_cache,
        models=tuple((NamePattern(pattern.lower()), mode) for pattern, mode in modes.items()),
        allow_1h=allow_1h,
        price_terms=catalog.price_terms,
    )


def _translation_model(config: Config, catalog: ModelCatalog) -> str | None:
    """Return the model that translates transcripts; None if that is disabled."""
    name = config.audio_translation_model or catalog.defaults.get("translation")
    return None if name == "none" else name


def _model_profile(config: Config, catalog: ModelCatalog, model: str) -> ModelProfile:
    """Return a model's deviations, by the patterns of the settings and the catalog."""
    model, spec = model.lower(), catalog.get(model)

    def matches(patterns: list[str]) -> bool:
        return any(fnmatchcase(model, pattern.lower()) for pattern in patterns)

    return ModelProfile(
        implied_think=matches(config.implied_think_models) or bool(spec.implied_think),
        cumulative=matches(config.cumulative_models) or bool(spec.cumulative),
        react=matches(config.react_models) or bool(spec.react),
        bare_json=matches(config.bare_json_models) or bool(spec.bare_json),
    )


def build_model_directory(
    config: Config,
    accounts: Sequence[Account],
    transport: UpstreamTransport,
    catalog: ModelCatalog,
    shared: ModelListStore | None,
) -> ModelDirectory:
    """Return the directory of the accounts' models; `shared` has the lists of all processes."""
    return ModelDirectory(
        accounts,
        transport,
        cache_seconds=config.models_cache_seconds,
        aliases=build_aliases(config, accounts, catalog),
        catalog=catalog,
        extra=config.models,
        shared=shared,
    )


def build_realtime(config: Config, catalog: ModelCatalog) -> RealtimeConfig:
    """Return the settings of realtime sessions."""
    return RealtimeConfig(
        limits.session_limits(config), config.realtime_voices, catalog.defaults["transcription"]
    )
