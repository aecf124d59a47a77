"""Shared state for commands: a client that is connected for the time of one action.

A server has its own client, which stays connected; without `shared_state` the actions use this machine's
files.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import trio

from qproxy.access.api_keys import ApiKeyStore, ApiKeyStoreError
from qproxy.accounts.shared_state import AccountStateStore, StateStoreError
from qproxy.auth.credential_store import CredentialStore, StorageError
from qproxy.backends.credentials import OpenCredentials, credential_opener, shared_credential_opener
from qproxy.backends.factory import (
    SharedStateFailure,
    open_account_state,
    open_api_keys,
    open_key_table,
    open_redis_client,
    open_sealer,
)
from qproxy.backends.local import key_file
from qproxy.backends.stores import open_stores, store_opener
from qproxy.config import Config
from qproxy.config.accounts import AccountConfig, ConfigError
from qproxy.server.response_store import ResponseStoreError
from qproxy.server.stores import ResponseStores

if TYPE_CHECKING:
    from qproxy.backends.redis.client import RedisClient
    from qproxy.backends.redis.key_table import KeyTable

T = TypeVar("T")


async def with_client(config: Config, act: Callable[[RedisClient], Awaitable[T]]) -> T:
    """Return the result of an action. Raises SharedStateFailure without a connection, ConfigError."""
    client = open_redis_client(config)
    from qproxy.backends.redis.errors import RedisError
    from qproxy.backends.redis.report import connection_of

    result: list[T] = []
    failure: Exception | None = None
    try:
        async with connection_of(client, 2 * config.shared_state_connect_timeout):
            try:
                result.append(await act(client))
            except Exception as error:  # the context would put it into a group
                failure = error
    except RedisError as error:
        failure = failure or SharedStateFailure(f"shared_state cannot be used: {error}.")
    if failure is not None:
        raise failure
    return result[0]


async def with_api_keys(config: Config, act: Callable[[ApiKeyStore], Awaitable[T]]) -> T:
    """Return the result of an action on the keys, without those of the settings.

    Raises ApiKeyStoreError, ConfigError.
    """
    config = replace(config, api_keys=[])
    if config.shared_state is None:
        return await act(open_api_keys(config))
    from qproxy.backends.redis.api_keys import RedisApiKeys

    return await _with_key_table(config, lambda table: act(RedisApiKeys(table, (), optional=False)))


async def with_stores(config: Config, act: Callable[[ResponseStores], Awaitable[T]]) -> T:
    """Return the result of an action on the stores of the Responses API.

    Raises ResponseStoreError, ConfigError.
    """
    sealer = None if config.shared_state is None else open_sealer(config)
    if sealer is None:
        return await _act_and_close(open_stores(config), act)
    from qproxy.backends.redis.stores import RedisStores

    async def act_on_shared(client: RedisClient) -> T:
        return await _act_and_close(store_opener(RedisStores(client, sealer))(config), act)

    try:
        return await with_client(config, act_on_shared)
    except SharedStateFailure as error:
        raise ResponseStoreError(str(error)) from None


async def _act_and_close(stores: ResponseStores, act: Callable[[ResponseStores], Awaitable[T]]) -> T:
    try:
        return await act(stores)
    finally:
        await stores.aclose()


async def with_account_states(config: Config, act: Callable[[AccountStateStore], Awaitable[T]]) -> T | None:
    """Return the result of an action on the account states, None if they are not stored.

    Raises StateStoreError, also if what has changed could not be published; ConfigError.
    """
    if config.shared_state is not None:
        try:
            return await with_client(config, lambda client: _with_shared_states(client, act))
        except SharedStateFailure as error:
            raise StateStoreError(str(error)) from None
    store = open_account_state(config)
    if store is None:
        return None
    try:
        return await act(store)
    finally:
        await store.aclose()


async def _with_shared_states(client: RedisClient, act: Callable[[AccountStateStore], Awaitable[T]]) -> T:
    from qproxy.backends.redis.account_state import RedisAccountState
    from qproxy.backends.redis.shared_state import LIMITS
    from qproxy.backends.redis.subjects import Subjects
    from qproxy.backends.redis.subscriber import Subscriber

    store = RedisAccountState(client, Subjects(client, LIMITS, "a", "share"), Subscriber(client))
    result = await act(store)
    await store.aclose()
    if not store.is_settled:
        raise SharedStateFailure("shared_state cannot be used: a change was not confirmed.")
    return result


async def import_api_keys(config: Config) -> tuple[int, int]:
    """Add the keys of `keys_file` to shared state; return how many were new there, and how many the file has.

    Raises ApiKeyStoreError, ConfigError.
    """
    if config.shared_state is None or not config.keys_file:
        raise ConfigError("shared_state and keys_file must be set.")
    keys = key_file.read(Path(config.keys_file))
    return await _with_key_table(config, lambda table: table.merge(keys)), len(keys)


async def with_credentials(
    config: Config, account: AccountConfig, act: Callable[[CredentialStore], Awaitable[T]]
) -> T:
    """Return the result of an action on an account's tokens. Raises StorageError, ConfigError."""
    if config.shared_state is None:
        return await act(credential_opener(config)(account))

    async def open_and_act(client: RedisClient) -> T:
        return await act(shared_credential_opener(client, open_sealer(config))(config)(account))

    try:
        return await with_client(config, open_and_act)
    except SharedStateFailure as error:
        raise StorageError(str(error)) from None


async def with_shared_accounts(
    config: Config, act: Callable[[OpenCredentials], Awaitable[T]], *, connect: bool
) -> T:
    """Return the result of an action on accounts, whether or not the server can be used.

    Raises ConfigError; without `connect`, this machine's copies are used.
    """
    client = open_redis_client(config)
    open_credentials = shared_credential_opener(client, open_sealer(config))(config)
    if not connect:
        return await act(open_credentials)
    result: list[T] = []
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.run)
        try:
            result.append(await act(open_credentials))
        except Exception as error:  # the nursery would put it into a group
            failure = error
        with trio.CancelScope(shield=True):
            await client.presence.end()
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
    return result[0]


async def import_credentials(config: Config, account: AccountConfig) -> bool:
    """Move an account's tokens from this machine's file to shared state; return whether there were any.

    The file is removed: its refresh token is used up by the first refresh. Raises StorageError, also if the
    account is logged in there; ConfigError.
    """
    file = credential_opener(config)(account)

    async def move(store: CredentialStore) -> bool:
        async with file.exclusive():
            tokens = await file.load()
            if tokens is None:
                return False
            if await store.load() is not None:
                raise StorageError(
                    f"account {account.name} is logged in in shared_state; to use its login, remove "
                    f"{file.location}."
                )
            await store.save(tokens)
        return await file.remove()

    if await file.version() is None:
        return False
    return await with_credentials(config, account, move)


async def export_credentials(config: Config, account: AccountConfig) -> bool:
    """Move an account's tokens from shared state to this machine's file; return whether there were any.

    Raises StorageError, ConfigError.
    """
    file = credential_opener(config)(account)

    async def move(store: CredentialStore) -> bool:
        tokens = await store.load()
        if tokens is None:
            return False
        await file.save(tokens)
        return await store.remove()

    return await with_credentials(config, account, move)


async def reseal_credentials(config: Config, account: AccountConfig) -> bool:
    """Seal an account's tokens with the first key; return whether there were any.

    Raises StorageError, ConfigError.
    """

    async def reseal(store: CredentialStore) -> bool:
        async with store.exclusive():
            tokens = await store.load()
            if tokens is None:
                return False
            pending = await store.prepare_write("")
            try:
                await pending.commit(tokens)
            finally:
                await pending.discard()
        return True

    return await with_credentials(config, account, reseal)


async def _with_key_table(config: Config, act: Callable[[KeyTable], Awaitable[T]]) -> T:
    from qproxy.backends.redis.errors import RedisError

    async def read_and_act(client: RedisClient) -> T:
        table = open_key_table(config, client)
        try:
            await table.read()
        except RedisError as error:
            raise SharedStateFailure(f"shared_state cannot be used: {error}.") from None
        return await act(table)

    try:
        return await with_client(config, read_and_act)
    except SharedStateFailure as error:
        raise ApiKeyStoreError(str(error)) from None
