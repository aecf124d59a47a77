"""The parts of an account that is signed in, put together from the settings; for the server and for `qproxy login`."""

from __future__ import annotations

from pathlib import Path

from qproxy.auth.blocking import DISK_TIMEOUT, LOCK_TIMEOUT
from qproxy.auth.credential_file import FILE_NAME as FILE_NAME
from qproxy.auth.credential_file import CredentialFile, StorageError
from qproxy.auth.encryption import KeyringCipher
from qproxy.auth.identity_client import IdentityClient
from qproxy.auth.lock import FileLock
from qproxy.auth.oauth_source import OAuthSource
from qproxy.auth.refresher import TokenRefresher
from qproxy.auth.token_state import TokenState
from qproxy.bootstrap import transport
from qproxy.config import Config, data_dir
from qproxy.config.accounts import AccountConfig, ConfigError, resolve_account
from qproxy.transport import ConnectFunction
from qproxy.wire.oauth import IdentityProvider

SETTINGS = (
    "oauth_device_url", "oauth_token_url", "oauth_client_id", "oauth_scope", "oauth_hosts", "oauth_interval",
    "oauth_timeout", "oauth_refresh_ahead", "encrypt_credentials", *transport.SETTINGS,
)  # fmt: skip
"""What a source is made of besides its account: when one of them changes, so does the source."""


def build_oauth_source(
    account: AccountConfig, config: Config, connect: ConnectFunction | None = None
) -> OAuthSource:
    """The account's credential source.

    It has connections of its own, which are not kept: the pool would send a request again whose connection was lost,
    and a refresh token must not be shown twice.
    """
    account = resolve_account(account)
    assert account.base_url is not None
    path, shared = credential_path(account), account.credentials is not None
    provider = IdentityProvider(
        config.oauth_device_url, config.oauth_token_url, config.oauth_client_id, config.oauth_scope
    )
    identity = IdentityClient(
        transport.build_transport(config, connect, pool_idle=0.0), provider, timeout=config.oauth_timeout
    )
    file = CredentialFile(path, shared=shared, cipher=_cipher(config, shared))
    token_state = TokenState(account.name, config.oauth_refresh_ahead)
    refresher = TokenRefresher(token_state, file, FileLock(path, shared=shared), identity)
    return OAuthSource(
        token_state,
        refresher,
        hosts=config.oauth_hosts,
        fallback_url=account.base_url,
        interval=config.oauth_interval,
        patience=LOCK_TIMEOUT + config.oauth_timeout + DISK_TIMEOUT,
    )


def credential_path(account: AccountConfig) -> Path:
    """The account's credential file: in our own directory, or where the settings say."""
    if account.credentials is None:
        return data_dir() / "accounts" / account.name / FILE_NAME
    path = Path(account.credentials).expanduser()
    return path if path.suffix == ".json" else path / FILE_NAME


def _cipher(config: Config, shared: bool) -> KeyringCipher | None:
    """Encryption of the file; one that is shared with qwen-code is as qwen-code has it."""
    if not config.encrypt_credentials or shared:
        return None
    try:
        return KeyringCipher()
    except StorageError as error:
        raise ConfigError(str(error)) from None
