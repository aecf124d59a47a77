"""From a `Config` to the stores of the tokens of logged-in accounts: files, or `shared_state` with copies.

Without `shared_state` each account has a file of this machine. With it, the tokens of accounts are sealed on
the server, and a file that other programs use too cannot be shared.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

from qproxy.auth.credential_store import CredentialStore, StorageError
from qproxy.auth.encryption import KeyringCipher
from qproxy.backends.local.credential_copy import CredentialCopy
from qproxy.backends.local.credential_file import CredentialFile
from qproxy.backends.local.credential_lock import FileLock
from qproxy.backends.local.credentials import FileCredentials
from qproxy.backends.local.files import credential_copy_path, credential_path
from qproxy.config import Config
from qproxy.config.accounts import AccountConfig, ConfigError

if TYPE_CHECKING:
    from qproxy.backends.redis.client import RedisClient
    from qproxy.backends.redis.credentials import RedisCredentials
    from qproxy.backends.redis.sealing import Sealer

OpenCredentials: TypeAlias = Callable[[AccountConfig], CredentialStore]


def credential_opener(config: Config) -> OpenCredentials:
    """Return what opens the credential files of accounts. It raises ConfigError if there is no keyring."""

    def open_credentials(account: AccountConfig) -> CredentialStore:
        path, shared = credential_path(account), account.credentials is not None
        cipher = (
            _cipher() if config.encrypt_credentials and not shared else None
        )  # qwen-code's format otherwise
        file = CredentialFile(path, shared=shared, cipher=cipher)
        return FileCredentials(file, FileLock(path, shared=shared))

    return open_credentials


def shared_credential_opener(
    client: RedisClient, sealer: Sealer | None, opened: list[RedisCredentials] | None = None
) -> Callable[[Config], OpenCredentials]:
    """Return what opens the stores of accounts on a server, for the settings of a start or a reload.

    They are added to those that are `opened`. It raises ConfigError for an account whose tokens cannot be
    shared.
    """
    from qproxy.backends.redis.credentials import RedisCredentials

    def opener(config: Config) -> OpenCredentials:
        def open_credentials(account: AccountConfig) -> CredentialStore:
            where = f"account {account.name!r}: with shared_state"
            if account.credentials is not None:
                raise ConfigError(
                    f"{where}, its credentials cannot be a file of other programs, which use up its tokens. "
                    "Remove the setting credentials and log in again: qproxy login."
                )
            if sealer is None:
                raise ConfigError(
                    f"{where}, tokens of a login require shared_state_key_file, which encrypts them."
                )
            copy = CredentialCopy(CredentialFile(credential_copy_path(account)))
            timeout = config.oauth_timeout
            store = RedisCredentials(client, sealer, account.name, copy, exchange_timeout=timeout)
            if opened is not None:
                opened.append(store)
            return store

        return open_credentials

    return opener


def _cipher() -> KeyringCipher:
    try:
        return KeyringCipher()
    except StorageError as error:
        raise ConfigError(str(error)) from None
