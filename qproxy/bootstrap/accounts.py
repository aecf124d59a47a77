"""Accounts from their tables in the settings."""

from __future__ import annotations

from collections.abc import Sequence

from qproxy.accounts import Account
from qproxy.accounts.rate_limit import AccountRateLimiter
from qproxy.auth import CredentialSource, StaticKey
from qproxy.backends.credentials import OpenCredentials
from qproxy.bootstrap import auth, telemetry
from qproxy.config import Config
from qproxy.config.accounts import AccountConfig
from qproxy.transport import ConnectFunction
from qproxy.wire.model_aliases import ModelAliases
from qproxy.wire.models import ModelCatalog
from qproxy.wire.models.catalog import VENDOR


def build_accounts(
    config: Config, connect: ConnectFunction, open_credentials: OpenCredentials, catalog: ModelCatalog
) -> tuple[Account, ...]:
    """Return the accounts of the settings.  Raises ConfigError when there are none."""
    return tuple(
        build_account(entry, config, connect, open_credentials, catalog) for entry in config.all_accounts()
    )


def build_account(
    entry: AccountConfig,
    config: Config,
    connect: ConnectFunction,
    open_credentials: OpenCredentials,
    catalog: ModelCatalog,
) -> Account:
    """Return one account with its credential source."""
    assert entry.base_url is not None
    source: CredentialSource = StaticKey(entry.base_url, entry.key)
    if entry.kind == "oauth":
        source = auth.build_oauth_source(entry, config, open_credentials(entry), connect)
    return Account(
        name=entry.name,
        source=source,
        provider_family="open" if entry.kind == "openai_compatible" else "dashscope",
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
        completions=None if entry.completions is None else tuple(entry.completions),
        embedding_batch=entry.embedding_batch or 0,
        redact=telemetry.build_redact(config),
        realtime_url=entry.realtime_url or "",
        flex_url=entry.flex_url or "",
        tasks=None if entry.tasks is None else frozenset(entry.tasks),
        catalog=catalog,
    )


def build_aliases(config: Config, accounts: Sequence[Account], catalog: ModelCatalog) -> ModelAliases:
    """Return the aliases; `*` does not match models that the settings or an account name, or that are Qwen's
    own."""

    def is_model(name: str) -> bool:
        return name in named or (dashscope and catalog.get(name).vendor == VENDOR)

    named = {*config.models, *(name for account in accounts for name in account.models)}
    dashscope = any(account.provider_family == "dashscope" for account in accounts)
    return ModelAliases(config.aliases, is_model)
