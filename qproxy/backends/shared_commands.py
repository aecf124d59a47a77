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
from qproxy.backends.factory import (
    SharedStateFailure,
    open_api_keys,
    open_key_table,
    open_redis_client,
    open_sealer,
)
from qproxy.backends.local import key_file
from qproxy.backends.stores import open_stores, store_opener
from qproxy.config import Config
from qproxy.config.accounts import ConfigError
from qproxy.server.response_store import ResponseStoreError
from qproxy.server.stores import ResponseStores

if TYPE_CHECKING:
    from qproxy.backends.redis.client import RedisClient
    from qproxy.backends.redis.key_table import KeyTable

T = TypeVar("T")


async def with_client(config: Config, act: Callable[[RedisClient], Awaitable[T]]) -> T:
    """Return the result of an action. Raises SharedStateFailure without a connection, ConfigError."""
    client = open_redis_client(config)
    result: list[T] = []
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.run)
        try:
            with trio.fail_after(2 * config.shared_state_connect_timeout):
                await client.wait_connected()
            result.append(await act(client))
        except trio.TooSlowError:
            failure = SharedStateFailure(f"shared_state cannot be used: {client.failure}.")
        except Exception as error:  # a nursery would wrap it
            failure = error
        nursery.cancel_scope.cancel()
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


async def import_api_keys(config: Config) -> tuple[int, int]:
    """Add the keys of `keys_file` to shared state; return how many were new there, and how many the file has.

    Raises ApiKeyStoreError, ConfigError.
    """
    if config.shared_state is None or not config.keys_file:
        raise ConfigError("shared_state and keys_file must be set.")
    keys = key_file.read(Path(config.keys_file))
    return await _with_key_table(config, lambda table: table.merge(keys)), len(keys)


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
