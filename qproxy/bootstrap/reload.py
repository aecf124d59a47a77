"""The state for changed settings: most parts are rebuilt, those with live state are kept.

Accounts with unchanged settings keep their state; connections, tools and stored responses are kept if none of
their settings changed. All other live state (counters, limiters, requests in flight) is kept.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import trio

from qproxy.accounts import Account
from qproxy.backends.factory import reopen_api_keys
from qproxy.bootstrap import auth, limits, state, telemetry, transport
from qproxy.bootstrap.accounts import build_account
from qproxy.bootstrap.models import build_catalog
from qproxy.bootstrap.tools import build_tool_runtime
from qproxy.config import Config
from qproxy.relay.tokenizers import Tokenizers
from qproxy.server import ServerState
from qproxy.server.cors import CorsPolicy
from qproxy.wire.models import ModelCatalog

RESTART_REQUIRED = frozenset({
    "host", "port", "certfile", "keyfile", "max_client_connections", "max_header_bytes",
    "client_idle_timeout", "linger_bytes", "linger_timeout", "max_client_connection_age", "probe_interval",
    "account_state_file", "client_write_timeout", "graceful_timeout", "client_body_timeout", "max_body_bytes",
    "metrics_access", "tracing", "ledger", "ledger_retention_days", "workers", "rate_limits_file",
    "ledger_password_file", "ledger_spool_file", "ledger_timeout",
    "shared_state", "shared_state_password_file", "shared_state_key_file", "shared_state_prefix",
    "shared_state_policy", "shared_state_timeout", "shared_state_connect_timeout",
    "shared_state_outbox",
    "shared_response_max_bytes", "reasoning_cache_seconds", "tool_round_cache_seconds",
    "wrong_keys_file", "wrong_keys_per_minute", "access_file", "audit_file",
    "compaction_key_file", "files_directory", "files_max_bytes", "files_max_age",
    "batch_parallel",
})  # fmt: skip
"""Settings that a running server cannot change."""
CONCURRENCY_SETTINGS = ("max_requests", "max_queue_size", "queue_timeout")
TOOL_SETTINGS = (
    "tools",
    "mcp_servers",
    "tool_rules",
    "max_tool_rounds",
    "max_tool_processes",
    "web_search_tool",
    "missing_web_search",
    "client_mcp_hosts",
    "client_mcp_private",
    "client_mcp_timeout",
    *transport.SETTINGS,
)
STORE_SETTINGS = (
    "store_responses", "responses_file", "responses_max_age", "responses_max_bytes", "store_timeout",
)  # fmt: skip


def effective_config(config: Config, running: Config) -> Config:
    """Return new settings with the running server's values of those that it cannot change."""
    return replace(config, **{name: getattr(running, name) for name in RESTART_REQUIRED})


def rebuild_state(config: Config, before: Config, previous: ServerState) -> ServerState:
    """Return the state for other settings; `before` are those of the running one.

    Raises ConfigError, without an effect on the running server.
    """

    def unchanged(names: Iterable[str]) -> bool:
        return all(getattr(config, name) == getattr(before, name) for name in names)

    state.check_rules(config)
    catalog = build_catalog(config.model_rows)
    accounts = _renew_accounts(config, before, previous, same_login=unchanged(auth.SETTINGS), catalog=catalog)
    same_transport = unchanged(transport.SETTINGS)
    connections = previous.relay.transport if same_transport else transport.build_transport(config)
    same_tools, same_store = unchanged(TOOL_SETTINGS), unchanged(STORE_SETTINGS)
    api_keys = reopen_api_keys(config, previous.authentication.api_keys)
    same_concurrency = unchanged(CONCURRENCY_SETTINGS)
    stores = previous if same_store else previous.open_stores(config)
    tool_runtime = previous.tool_runtime
    if not same_tools:
        tool_runtime = build_tool_runtime(config, rounds=previous.tool_runtime.rounds)
    return replace(
        previous,
        authentication=state.build_authentication(
            config, accounts, api_keys, catalog, previous.authentication.client_secrets
        ),
        root_path=config.root_path,
        cors=CorsPolicy(tuple(config.cors_origins)),
        trusted_proxies=state.build_trusted_proxies(config),
        request_limits=limits.request_limits(config),
        concurrency=previous.concurrency if same_concurrency else state.build_concurrency(config),
        default_model=config.default_model,
        pool_settings=limits.pool_settings(config, accounts, catalog),
        relay=state.build_relay(
            config,
            accounts,
            previous.relay.accounts,
            connections,
            catalog,
            previous.relay.reasoning,
            previous.relay.token_ratios,
            previous.relay.cache_planner,
        ),
        model_directory=state.build_model_directory(
            config, accounts, connections, catalog, previous.model_directory.shared
        ),
        tokenizers=Tokenizers(accounts, connections, timeout=config.tokenize_timeout),
        realtime=state.build_realtime(config, catalog),
        response_sockets=limits.response_socket_limits(config),
        tool_runtime=tool_runtime,
        compactor=previous.compactor.renewed(on_overflow=config.compact_on_overflow),
        responses=stores.responses,
        conversations=stores.conversations,
        completions=stores.completions,
        response_runs=stores.response_runs,
        pricing=telemetry.build_pricing(config, catalog),
        unpriced_models=config.unpriced_models,
        redact=telemetry.build_redact(config),
        body_logger=telemetry.build_body_logger(config),
    )


def _renew_accounts(
    config: Config, before: Config, previous: ServerState, *, same_login: bool, catalog: ModelCatalog
) -> tuple[Account, ...]:
    """Return the accounts of the settings: the running one where its table is the same, otherwise a new
    one."""
    known, open_credentials = before.all_accounts(), previous.credential_opener(config)
    running = dict(zip((entry.name for entry in known), previous.pool_settings.accounts, strict=True))
    return tuple(
        running[entry.name]
        if entry in known and (entry.kind != "oauth" or same_login)
        else build_account(entry, config, trio.open_tcp_stream, open_credentials, catalog)
        for entry in config.all_accounts()
    )
