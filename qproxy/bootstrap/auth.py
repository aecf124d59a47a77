"""Credential sources of accounts with a login, for the server and for `qproxy login`."""

from __future__ import annotations

import trio

from qproxy.auth.credential_store import CredentialStore
from qproxy.auth.identity_client import IdentityClient
from qproxy.auth.oauth_source import OAuthSource
from qproxy.auth.refresher import TokenRefresher
from qproxy.auth.token_state import TokenState
from qproxy.bootstrap import transport
from qproxy.config import Config
from qproxy.config.accounts import AccountConfig, resolve_account
from qproxy.transport import ConnectFunction
from qproxy.wire.oauth import IdentityProvider

SETTINGS = (
    "oauth_device_url", "oauth_token_url", "oauth_client_id", "oauth_scope", "oauth_hosts", "oauth_interval",
    "oauth_timeout", "oauth_refresh_margin", "encrypt_credentials", *transport.SETTINGS,
)  # fmt: skip
"""The settings of a source besides its account: a reload builds a new one if any of them changed."""


def build_oauth_source(
    account: AccountConfig,
    config: Config,
    store: CredentialStore,
    connect: ConnectFunction = trio.open_tcp_stream,
) -> OAuthSource:
    """Return the account's credential source.

    Its connections are not kept: the pool resends a request whose reused connection was closed, and a refresh
    token must not be sent twice.
    """
    account = resolve_account(account)
    assert account.base_url is not None
    provider = IdentityProvider(
        config.oauth_device_url, config.oauth_token_url, config.oauth_client_id, config.oauth_scope
    )
    identity = IdentityClient(
        transport.build_transport(config, connect, keep_connections=False),
        provider,
        timeout=config.oauth_timeout,
    )
    token_state = TokenState(account.name, config.oauth_refresh_margin)
    refresher = TokenRefresher(token_state, store, identity)
    return OAuthSource(
        token_state,
        refresher,
        hosts=config.oauth_hosts,
        fallback_url=account.base_url,
        interval=config.oauth_interval,
        round_timeout=store.timeout + config.oauth_timeout,
    )
