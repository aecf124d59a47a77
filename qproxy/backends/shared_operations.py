"""The operations of `qproxy shared`: a report, moves between this machine and the server, and sealing again.

API keys are moved both ways. Budgets go one way: the server gets what the ledger knows as a lower bound, any
number of times; without `shared_state` budgets are what the ledger has.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import trio

from qproxy.access.api_keys import ApiKey, ApiKeyStore
from qproxy.backends.factory import SharedStateFailure, open_redis_client, open_sealer
from qproxy.backends.ledgers import open_ledger
from qproxy.backends.local import key_file
from qproxy.backends.shared_commands import with_api_keys, with_client
from qproxy.config import Config
from qproxy.config.accounts import ConfigError
from qproxy.ledger import Pricing

if TYPE_CHECKING:
    from qproxy.backends.redis.client import RedisClient
    from qproxy.backends.redis.inventory import KindSize, ResealOutcome
    from qproxy.backends.redis.report import ServerReport

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Inventory:
    """The content of the server, by kind."""

    address: str
    report: ServerReport
    kinds: Mapping[str, KindSize]


async def require_compatible(config: Config) -> None:
    """Raise ConfigError if this program is too old for the server's data, unless the server is away."""
    client = open_redis_client(config)
    from qproxy.backends.redis.monitor import RedisMonitor

    failure: ConfigError | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.run)
        try:
            await RedisMonitor(client, int).require_compatible()
        except ConfigError as error:  # the nursery would put it into a group
            failure = error
        await client.presence.end()
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure


async def read_inventory(config: Config) -> Inventory:
    """Return what there is on the server. Raises SharedStateFailure, ConfigError."""
    _require_shared_state(config)
    from qproxy.backends.redis.inventory import measure_kinds
    from qproxy.backends.redis.report import read_report

    async def read(client: RedisClient) -> Inventory:
        return Inventory(str(client.address), await read_report(client), await measure_kinds(client))

    return await _with_client(config, read)


async def export_api_keys(config: Config) -> tuple[int, int]:
    """Add the keys of the server to `keys_file`; return how many were new there, and how many there are.

    Raises ApiKeyStoreError, ConfigError.
    """
    _require_shared_state(config)
    if not config.keys_file:
        raise ConfigError("keys_file must be set.")
    keys = await with_api_keys(config, _list_keys)
    return key_file.merge(Path(config.keys_file), keys), len(keys)


async def import_budgets(config: Config) -> int:
    """Supply what the ledger knows of the keys with budgets, and return how many those are.

    Raises SharedStateFailure, ApiKeyStoreError, ConfigError.
    """
    ledger = open_ledger(config, Pricing())
    if ledger is None:
        return 0
    keys = [key for key in await with_api_keys(config, _list_keys) if key.budgets and key.revoked is None]
    from qproxy.backends.redis.shared_state import LIMITS
    from qproxy.backends.redis.subjects import Subjects
    from qproxy.backends.redis.usage_limiter import RedisUsageLimiter

    async def supply(client: RedisClient) -> None:
        subjects = Subjects(client, LIMITS, "k", "closed")
        limiter = RedisUsageLimiter(subjects, ledger)
        for key in keys:
            await limiter.supply(key)
        await subjects.aclose()
        if subjects.active:
            raise SharedStateFailure(f"{subjects.active} keys have no reply (shared_state_timeout).")

    try:
        await _with_client(config, supply)
    finally:
        await ledger.aclose()
    return len(keys)


async def reseal(config: Config) -> ResealOutcome:
    """Seal what is on the server with the first key. Raises SharedStateFailure, ConfigError."""
    _require_shared_state(config)
    sealer = open_sealer(config)
    if sealer is None:
        raise ConfigError("shared_state_key_file must be set.")
    from qproxy.backends.redis.inventory import reseal_records

    return await _with_client(config, lambda client: reseal_records(client, sealer))


async def _with_client(config: Config, act: Callable[[RedisClient], Awaitable[T]]) -> T:
    """Return the result of an action. Raises SharedStateFailure, also for a command that fails."""
    from qproxy.backends.redis.errors import RedisError

    try:
        return await with_client(config, act)
    except RedisError as error:
        raise SharedStateFailure(f"shared_state cannot be used: {error}.") from None


def _require_shared_state(config: Config) -> None:
    if config.shared_state is None:
        raise ConfigError("shared_state must be set.")


async def _list_keys(store: ApiKeyStore) -> tuple[ApiKey, ...]:
    return store.list_keys()
