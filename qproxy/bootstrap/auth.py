"""The parts of an account that is signed in, put together from the settings; for the server and for `qproxy login`."""

from __future__ import annotations

from pathlib import Path

from qproxy.auth.blocking import DISK_TIMEOUT, LOCK_PATIENCE
from qproxy.auth.credential_file import NAME as FILE_NAME
from qproxy.auth.credential_file import CredentialFile, StorageError
from qproxy.auth.encryption import KeyringSeal
from qproxy.auth.identity_client import Identity
from qproxy.auth.lock import Lock
from qproxy.auth.oauth_source import OAuthSource
from qproxy.auth.refresher import Keeper
from qproxy.auth.token_state import Holding
from qproxy.bootstrap import transport as outbound
from qproxy.config import Config, home
from qproxy.config.accounts import AccountConfig, ConfigError, resolve
from qproxy.transport import Connect
from qproxy.wire.oauth import Provider

SETTINGS = (
    "oauth_device_url", "oauth_token_url", "oauth_client_id", "oauth_scope", "oauth_hosts", "oauth_interval",
    "oauth_timeout", "oauth_refresh_ahead", "encrypt_credentials", *outbound.SETTINGS,
)  # fmt: skip
"""What a source is made of besides its account: when one of them changes, so does the source."""


def source(account: AccountConfig, config: Config, connect: Connect | None = None) -> OAuthSource:
    """The account's credential source.

    It has connections of its own, which are not kept: the pool would send a request again whose connection was lost,
    and a refresh token must not be shown twice.
    """
    account = resolve(account)
    assert account.base_url is not None
    path, shared = place(account), account.credentials is not None
    provider = Provider(
        config.oauth_device_url, config.oauth_token_url, config.oauth_client_id, config.oauth_scope
    )
    identity = Identity(
        outbound.transport(config, connect, pool_idle=0.0), provider, timeout=config.oauth_timeout
    )
    file = CredentialFile(path, shared=shared, seal=_seal(config, shared))
    holding = Holding(account.name, config.oauth_refresh_ahead)
    keeper = Keeper(holding, file, Lock(path, shared=shared), identity)
    return OAuthSource(
        holding,
        keeper,
        hosts=config.oauth_hosts,
        fallback_url=account.base_url,
        interval=config.oauth_interval,
        patience=LOCK_PATIENCE + config.oauth_timeout + DISK_TIMEOUT,
    )


def place(account: AccountConfig) -> Path:
    """The account's credential file: in our own directory, or where the settings say."""
    if account.credentials is None:
        return home() / "accounts" / account.name / FILE_NAME
    path = Path(account.credentials).expanduser()
    return path if path.suffix == ".json" else path / FILE_NAME


def _seal(config: Config, shared: bool) -> KeyringSeal | None:
    """Encryption of the file; one that is shared with qwen-code is as qwen-code has it."""
    if not config.encrypt_credentials or shared:
        return None
    try:
        return KeyringSeal()
    except StorageError as error:
        raise ConfigError(str(error)) from None
