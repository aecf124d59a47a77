"""From a `Config` to the members of shared state.

`open_backends` makes one of each for a server; the other functions make one for a command, or for a reload
that renews it. Nothing is opened before its first use, except that the keys are read.
"""

from __future__ import annotations

import math
import sqlite3
import ssl
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from qproxy.access.api_keys import ApiKeyStore, ApiKeyStoreError, StaticApiKeys, keys_from_settings
from qproxy.access.grants import GrantStore
from qproxy.access.rate_limits import RateLimitStore
from qproxy.access.usage_limiter import UsageLimiter
from qproxy.accounts.shared_state import AccountStateStore
from qproxy.auth.background import RefreshTasks
from qproxy.auth.login_sessions import LoginSessions
from qproxy.backends.backup import Backup
from qproxy.backends.credentials import OpenCredentials, credential_opener, shared_credential_opener
from qproxy.backends.ledgers import open_ledger
from qproxy.backends.local.account_state import SqliteAccountState
from qproxy.backends.local.api_keys import FileApiKeys
from qproxy.backends.local.audit import FileAuditLog
from qproxy.backends.local.backup import restore_backup, write_backup
from qproxy.backends.local.files import databases, secret_files, shared_keys_copy
from qproxy.backends.local.grants import SqliteGrants
from qproxy.backends.local.login_sessions import LocalLoginSessions
from qproxy.backends.local.rate_limits import FileRateLimits, MemoryRateLimits
from qproxy.backends.local.usage_limiter import LocalUsageLimiter
from qproxy.backends.stores import (
    open_batches,
    open_files,
    open_reasoning,
    open_stores,
    open_tool_rounds,
    open_uploads,
    store_opener,
)
from qproxy.config import Config
from qproxy.config.accounts import ConfigError
from qproxy.config.secret_files import read_secret
from qproxy.ledger import Pricing, UsageLedger
from qproxy.relay.model_lists import ModelListStore
from qproxy.relay.reasoning_store import ReasoningStore
from qproxy.relay.tool_rounds import ToolRoundStore
from qproxy.server.batch_store import BatchStore
from qproxy.server.completion_store import CompletionStore
from qproxy.server.conversation_store import ConversationStore
from qproxy.server.file_store import FileStore
from qproxy.server.replicas import SharedStateMonitor
from qproxy.server.response_runs import ResponseRunStore
from qproxy.server.response_store import ResponseStore
from qproxy.server.stores import ResponseStores
from qproxy.server.upload_store import UploadStore
from qproxy.telemetry.audit import AuditLog

if TYPE_CHECKING:
    from qproxy.backends.redis.client import RedisClient
    from qproxy.backends.redis.key_table import KeyTable
    from qproxy.backends.redis.report import ServerReport
    from qproxy.backends.redis.sealing import Sealer
    from qproxy.backends.redis.shared_state import SharedState

MAX_ADDRESSES = 20_000
"""Addresses with wrong secrets that one process counts, over all secrets."""
DATABASE_ERROR: type[Exception] = sqlite3.Error
"""Raised for a broken or locked database."""


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Backends:
    """One member of each Protocol."""

    api_keys: ApiKeyStore
    usage_limiter: UsageLimiter
    wrong_secrets: RateLimitStore
    """Wrong secrets by address."""
    grants: GrantStore
    account_state: AccountStateStore | None
    """None if accounts are not shared with other processes."""
    credentials: OpenCredentials
    """Opens the store of an account with a login."""
    login_sessions: Callable[[RefreshTasks], LoginSessions]
    """Given the tasks that run logins."""
    responses: ResponseStore | None
    """None if responses are not stored."""
    conversations: ConversationStore | None
    """None if responses are not stored, as for `response_runs`."""
    response_runs: ResponseRunStore | None
    completions: CompletionStore | None
    open_stores: Callable[[Config], ResponseStores] = store_opener(None)
    """Opens these for changed settings."""
    files: FileStore
    batches: BatchStore
    uploads: UploadStore
    tool_rounds: ToolRoundStore
    reasoning: ReasoningStore | None
    """None if ciphertext of reasoning is not kept."""
    model_lists: ModelListStore | None = None
    """None if each process asks for its own lists of models."""
    ledger: UsageLedger | None
    """None if usage is not recorded."""
    audit: AuditLog
    credential_opener: Callable[[Config], OpenCredentials] = credential_opener
    """Opens stores of accounts for changed settings."""
    monitor: SharedStateMonitor | None = None
    """None if no other machine shares anything."""
    startup: tuple[Callable[[], Awaitable[None]], ...] = ()
    """Waits of a moment, once the tasks of `background` run, before the first request is served."""
    background: tuple[Callable[[], Awaitable[None]], ...] = ()
    """Tasks that run while the server does."""


def open_backends(config: Config, pricing: Pricing) -> Backends:
    """Return the members that the settings name. Raises ConfigError."""
    ledger = open_ledger(config, pricing)
    local = _open_local(config, ledger)
    shared = open_shared_state(config, local)
    if shared is None:
        return local
    api_keys, startup = local.api_keys, [shared.monitor.require_compatible]
    if shared.key_table is not None:
        from qproxy.backends.redis.api_keys import RedisApiKeys

        configured = keys_from_settings(config.api_keys)
        api_keys = RedisApiKeys(shared.key_table, configured, optional=config.insecure_no_auth)
        startup.append(shared.key_table.wait_loaded)
    open_stores = store_opener(shared.stores)
    stores = open_stores(config)
    credentials = shared_credential_opener(shared.client, shared.sealer, shared.credentials)
    return replace(
        local,
        api_keys=api_keys,
        startup=tuple(startup),
        usage_limiter=shared.usage_limiter,
        account_state=shared.account_state,
        model_lists=shared.model_lists,
        wrong_secrets=shared.wrong_secrets,
        grants=shared.grants,
        credentials=credentials(config),
        credential_opener=credentials,
        login_sessions=lambda tasks: shared.open_login_sessions(LocalLoginSessions(tasks)),
        responses=stores.responses,
        conversations=stores.conversations,
        response_runs=stores.response_runs,
        completions=stores.completions,
        open_stores=open_stores,
        tool_rounds=open_tool_rounds(config, shared.stores),
        reasoning=open_reasoning(config, shared.stores),
        monitor=shared.monitor,
        background=(shared.run,),
    )


def _open_local(config: Config, ledger: UsageLedger | None) -> Backends:
    """Return members of this machine, around a ledger."""
    stores = open_stores(config)
    return Backends(
        api_keys=open_api_keys(config),
        usage_limiter=LocalUsageLimiter(_rate_limits(config.rate_limits_file, math.inf), ledger),
        wrong_secrets=_rate_limits(config.wrong_keys_file, MAX_ADDRESSES),
        grants=SqliteGrants(_path(config.access_file)),
        account_state=open_account_state(config),
        credentials=credential_opener(config),
        login_sessions=LocalLoginSessions,
        responses=stores.responses,
        conversations=stores.conversations,
        response_runs=stores.response_runs,
        files=open_files(config),
        batches=open_batches(config),
        uploads=open_uploads(config),
        completions=stores.completions,
        tool_rounds=open_tool_rounds(config),
        reasoning=open_reasoning(config),
        ledger=ledger,
        audit=open_audit(config),
    )


def open_shared_state(config: Config, local: Backends) -> SharedState | None:
    """Return the members on the server of `shared_state`, None without one; some use this machine's own.

    Raises ConfigError.
    """
    if config.shared_state is None:
        return None
    client = open_redis_client(config)
    from qproxy.backends.redis.shared_state import SharedState

    key_table = open_key_table(config, client) if config.keys_file else None
    return SharedState(
        client,
        config.shared_state_policy,
        local.ledger,
        grants=local.grants,
        key_table=key_table,
        sealer=open_sealer(config),
        outbox_directory=_path(config.shared_state_outbox),
    )


def open_key_table(config: Config, client: RedisClient) -> KeyTable:
    """Return the API keys on the server of `shared_state`."""
    from qproxy.backends.redis.key_table import KeyTable

    return KeyTable(client, shared_keys_copy(config), start_with_copy=config.shared_state_policy != "closed")


class SharedStateFailure(Exception):
    """The server of `shared_state` cannot be used; the message has the reason."""


async def probe_shared_state(config: Config) -> ServerReport:
    """Return what the server of `shared_state` reports. Raises SharedStateFailure."""
    client = open_redis_client(config)
    from qproxy.backends.redis.errors import RedisError
    from qproxy.backends.redis.report import connection_of, read_report

    try:
        async with connection_of(client, 2 * config.shared_state_connect_timeout):
            return await read_report(client)
    except RedisError as error:
        raise SharedStateFailure(f"{client.address}: {error}") from None


def open_redis_client(config: Config) -> RedisClient:
    """Return a client of the server of `shared_state`, not connected. Raises ConfigError."""
    try:
        from qproxy.backends.redis.address import InvalidAddress, parse_address
        from qproxy.backends.redis.client import RedisClient
        from qproxy.backends.redis.cluster import ClusterClient
        from qproxy.backends.redis.shared_state import SCRIPTS
    except ImportError:
        message = "shared_state: Valkey and Redis need the extra: pip install 'qproxy[redis]'"
        raise ConfigError(message) from None
    try:
        address = parse_address(config.shared_state or "")
    except InvalidAddress as error:
        raise ConfigError(f"shared_state: {error}.") from None
    password = read_secret("shared_state_password_file", config.shared_state_password_file)
    if password is not None:
        address = replace(address, password=password)
    return (ClusterClient if address.is_cluster else RedisClient)(
        address,
        prefix=config.shared_state_prefix,
        timeout=config.shared_state_timeout,
        connect_timeout=config.shared_state_connect_timeout,
        scripts=SCRIPTS,
        context=ssl.create_default_context(cafile=config.ca_bundle) if address.tls else None,
    )


def open_sealer(config: Config) -> Sealer | None:
    """Return what encrypts secrets in `shared_state`, None without keys. Raises ConfigError."""
    text = read_secret("shared_state_key_file", config.shared_state_key_file)
    if text is None:
        return None
    try:
        from qproxy.backends.redis.sealing import SealError, parse_keys
    except ImportError:
        message = "shared_state_key_file: encryption needs the extra: pip install 'qproxy[redis]'"
        raise ConfigError(message) from None
    try:
        return parse_keys(text)
    except SealError as error:
        raise ConfigError(f"shared_state_key_file: {config.shared_state_key_file} is {error}.") from None


def open_audit(config: Config) -> AuditLog:
    """Return the audit log."""
    return FileAuditLog(_path(config.audit_file), secrets=config.secrets())


def open_api_keys(config: Config) -> ApiKeyStore:
    """Return the keys of the settings and of this machine's key file. Raises ConfigError if the file cannot
    be read."""
    configured = keys_from_settings(config.api_keys)
    if not config.keys_file or config.shared_state is not None:
        return StaticApiKeys(configured)
    try:
        return FileApiKeys(Path(config.keys_file), configured)
    except ApiKeyStoreError as error:
        raise ConfigError(str(error)) from None


def reopen_api_keys(config: Config, running: ApiKeyStore) -> ApiKeyStore:
    """Return the keys for other settings of a running server. Raises ConfigError as `open_api_keys`."""
    if config.shared_state is not None:
        from qproxy.backends.redis.api_keys import RedisApiKeys

        if isinstance(running, RedisApiKeys):
            configured = keys_from_settings(config.api_keys)
            return running.with_settings(configured, optional=config.insecure_no_auth)
    return open_api_keys(config)


def open_account_state(config: Config) -> AccountStateStore | None:
    """Return the store of account states, None without one."""
    path = _path(config.account_state_file)
    return None if path is None else SqliteAccountState(path)


def back_up(home: Path, archive: Path, *, force: bool, now: float) -> Backup:
    """Back up a data directory to a file. Raises BackupError."""
    return write_backup(home, archive, force=force, now=now)


def restore(archive: Path, home: Path, *, force: bool, now: float) -> tuple[Backup, Path | None]:
    """Restore a data directory; also return where its former content is. Raises BackupError."""
    return restore_backup(archive, home, force=force, now=now)


def files_of_settings(config: Config) -> Iterator[Path]:
    """Yield the files with secrets and the databases that the settings name."""
    for _, path in (*secret_files(config), *databases(config)):
        yield path


def _rate_limits(path: str | None, max_subjects: float) -> RateLimitStore:
    if path:
        return FileRateLimits(Path(path), max_subjects=max_subjects)
    return MemoryRateLimits(max_subjects=max_subjects)


def _path(setting: str | None) -> Path | None:
    return Path(setting) if setting else None
