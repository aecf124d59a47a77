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

from qproxy import http_server as hypercorn
from qproxy.access.api_keys import KeyFileError, Keyring, configured
from qproxy.access.client_address import UNIX, TrustedProxies
from qproxy.access.rate_limits import Meters
from qproxy.accounts import Account, Accounts
from qproxy.accounts.rate_limit import Pace
from qproxy.accounts.sync import Sharing
from qproxy.auth import CredentialSource, StaticKey
from qproxy.backends.local.account_state import BoardFile
from qproxy.backends.local.grants import SQLiteGrants
from qproxy.backends.local.rate_limits import MeterFile
from qproxy.backends.local.responses import SQLiteStore
from qproxy.bootstrap import (
    auth as signing,
)
from qproxy.bootstrap import (
    telemetry as watching,
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
from qproxy.limits.concurrency import Admission
from qproxy.relay.model_directory import Discovery
from qproxy.relay.realtime import Bounds, Speech
from qproxy.relay.relay import Policy, Relay
from qproxy.sandbox import Site
from qproxy.server import Server
from qproxy.server.request_policy import Door
from qproxy.server.response_store import Store
from qproxy.transport import Connect, Transport
from qproxy.wire.dialects import model_catalog as catalogue
from qproxy.wire.dialects import request_rules as rules
from qproxy.wire.model_aliases import Aliases
from qproxy.wire.tool_calls import Profile

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


def assemble(
    config: Config,
    *,
    connect: Connect | None = None,
    tools: Sequence[ToolLike] = (),
    site: Site | None = None,
    meeting: Path | None = None,
) -> Server:
    """The server's parts, wired together.

    `connect(host, port)` gives the streams to upstreams, for programs with a network of their own; `tools` are such a
    program's functions that models may call, `site` its way to a sandbox.  `meeting` is where a worker's siblings are.
    """
    server = _assembled(config, connect or trio.open_tcp_stream, tools, site)
    server.preparations.append(partial(_apply_limits, config))
    server.background.append(partial(drain, server, config.graceful_timeout))
    watching.watch(server, config, meeting)
    if config.meters_file:
        server.meters = Meters(MeterFile(Path(config.meters_file)))
    shelf = MeterFile(Path(config.wrong_keys_file)) if config.wrong_keys_file else None
    grants = SQLiteGrants(Path(config.access_file) if config.access_file else None)
    server.limit_secrets(grants, shelf, config.wrong_keys_per_minute)
    if config.accounts_file:
        server.relay.accounts.sharing = Sharing(BoardFile(Path(config.accounts_file)))
        server.background.append(server.relay.accounts.keep_sharing)
    return server


def _assembled(
    config: Config, connect: Connect, tools: Sequence[ToolLike] = (), site: Site | None = None
) -> Server:
    known = {rule.name for rule in rules.RULES}
    unknown = {
        name for table in (config.rules, *(a.rules for a in config.accounts)) for name in table
    } - known
    if unknown:
        raise ConfigError(
            f"rules: there is no rule {', '.join(sorted(unknown))}; there are {', '.join(sorted(known))}."
        )
    accounts = [_account(entry, config, connect) for entry in config.all_accounts()]
    server = _server(config, accounts, outbound.transport(config, connect), _store(config))
    server.workshop = toolmaking.workshop(config, tools, site)
    return server


def reassemble(config: Config, before: Config, server: Server) -> Server:
    """The parts for another configuration; what its settings do not change is that of the running server."""
    parts, known = _assembled(config, trio.open_tcp_stream), before.all_accounts()
    running = dict(zip((entry.name for entry in known), server.relay.accounts.accounts, strict=True))
    same_signing = all(getattr(config, name) == getattr(before, name) for name in signing.SETTINGS)
    same = {e.name for e in config.all_accounts() if e in known and (e.kind != "oauth" or same_signing)}
    accounts = [running[a.name] if a.name in same else a for a in parts.relay.accounts.accounts]
    kept_by = {
        names: server if all(getattr(config, n) == getattr(before, n) for n in names) else parts
        for names in (outbound.SETTINGS, STORE_SETTINGS, TOOL_SETTINGS)
    }
    transport, store = kept_by[outbound.SETTINGS].relay.transport, kept_by[STORE_SETTINGS].store
    made = _server(config, accounts, transport, store)
    made.workshop = kept_by[TOOL_SETTINGS].workshop
    return made


def _server(config: Config, entries: Sequence[Account], transport: Transport, store: Store | None) -> Server:
    accounts = Accounts(entries, queue_timeout=config.queue_timeout, max_waiting=config.max_waiting)
    aliases = _aliases(config, entries)
    policy = Policy(
        aliases=aliases,
        switches=config.rules,
        strict_params=config.strict_params,
        forced_tools=config.forced_tools,
        stream_upstream=config.stream_upstream,
        embedding_requests=config.embedding_requests,
        profile=lru_cache(maxsize=256)(partial(_profile, config)),
    )
    discovery = Discovery(
        accounts.accounts,
        transport,
        cache_seconds=config.models_cache_seconds,
        aliases=aliases,
        extra=config.models,
    )
    door = Door(
        keyring=_keyring(config),
        allowed_hosts=tuple(config.allowed_hosts),
        max_json_depth=config.max_json_depth,
        cors_origins=tuple(config.cors_origins),
        max_body_bytes=config.max_body_bytes,
        max_messages=config.max_messages,
        body_timeout=config.body_timeout,
        request_timeout=config.request_timeout or math.inf,
        keep_alive=config.keep_alive_interval or math.inf,
        default_model=config.default_model,
        aliases=aliases,
        admin_key=config.admin_key,
        insecure_no_auth=config.insecure_no_auth,
    )
    admission = Admission(config.max_requests, line=config.max_waiting, patience=config.queue_timeout)
    server = Server(Relay(accounts, transport, policy), discovery, door, admission)
    server.bodies, server.pricing = watching.bodies(config), watching.pricing(config)
    server.store = store
    server.proxies = _proxies(config)
    server.speech = Speech(_bounds(config), config.realtime_voices)
    return server


def _aliases(config: Config, accounts: Sequence[Account]) -> Aliases:
    """The settings' aliases; a model that they or an account name, or that is Qwen's own, is left to itself by `*`."""
    named = {*config.models, *(name for account in accounts for name in account.models)}
    dashscope = any(account.family == "dashscope" for account in accounts)
    return Aliases(config.aliases, lambda name: name in named or (dashscope and catalogue.is_qwen(name)))


def _bounds(config: Config) -> Bounds:
    return Bounds(
        timeout=config.realtime_timeout or math.inf,
        idle_timeout=config.realtime_idle_timeout or math.inf,
        ping_interval=config.realtime_ping_interval or math.inf,
        max_message_bytes=config.realtime_max_message_bytes,
    )


def _store(config: Config) -> Store | None:
    """Where responses are kept: in memory, and not as many, where no file is named."""
    if not config.store_responses:
        return None
    path = Path(config.responses_file) if config.responses_file else None
    return SQLiteStore(
        path,
        max_age=config.responses_max_age,
        max_bytes=config.responses_max_bytes if path else min(config.responses_max_bytes, MEMORY_BYTES),
        timeout=config.store_timeout,
    )


def _keyring(config: Config) -> Keyring:
    """The clients' keys: those of the settings and those of the file."""
    try:
        return Keyring(configured(config.api_keys), Path(config.keys_file) if config.keys_file else None)
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


def _profile(config: Config, model: str) -> Profile:
    """How a model deviates, by the patterns of the settings."""
    model = model.lower()

    def listed(patterns: list[str]) -> bool:
        return any(fnmatchcase(model, pattern.lower()) for pattern in patterns)

    return Profile(
        implied_think=listed(config.implied_think),
        cumulative=listed(config.cumulative),
        react=listed(config.react),
        bare_json=listed(config.bare_json),
    )


def _account(entry: AccountConfig, config: Config, connect: Connect | None) -> Account:
    assert entry.base_url is not None
    source: CredentialSource = StaticKey(entry.base_url, entry.key)
    if entry.kind == "oauth":
        source = signing.source(entry, config, connect)
    return Account(
        name=entry.name,
        source=source,
        family="open" if entry.kind == "open" else "dashscope",
        plan=entry.plan or "payg",
        models=tuple(entry.models),
        weight=entry.weight,
        max_in_flight=entry.max_in_flight,
        allowance=entry.allowance,
        identity=entry.identity,
        pace=Pace(entry.rpm, entry.tpm),
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
    return assemble(config, tools=tools).app()


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
    server = server or assemble(config, tools=tools)
    try:
        await hypercorn.serve(
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
    if not isinstance(shutdown, hypercorn.Worker):
        return
    hypercorn.install(
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
