"""The API keys of an installation: a hash on the server, a copy in each process, and one on its disk.

A process reads all keys at its start and whenever their version has changed: it gets a message for each
change, and reads the version each second. Requests are authenticated by the copy and wait for nothing. While
the server cannot be used the copy stays in use; a process that starts meanwhile uses the one on the disk.

Records are merged, never replaced: a key is created and revoked, and nothing else happens to it. So a server
that has lost records gets them back from any process that still has them, and no late write undoes a
revocation. An installation has an identifier, so that a copy is not merged into the keys of another one.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import trio

from qproxy.access import api_keys
from qproxy.access.api_keys import ApiKey, ApiKeyStoreBusy, ApiKeyStoreError
from qproxy.backends.redis.client import RedisClient
from qproxy.backends.redis.errors import OutcomeUnknown, RedisError
from qproxy.backends.redis.script import load_script
from qproxy.backends.redis.subscriber import Subscriber
from qproxy.system.private_file import replace_private_file
from qproxy.wire import json_codec

API_KEYS = load_script("api_keys")
CHANNEL = "keys"
CHANGE_TIMEOUT = 5.0
"""Seconds for a change."""
RETRY_PAUSE = 0.1
ANY_VERSION = -1
VERSION, INSTALLATION = "version", "installation"
Change = Callable[[Sequence[ApiKey]], list[ApiKey]]
"""Given all keys, returns the new records. Raises ApiKeyStoreError."""
log = logging.getLogger("qproxy.backends")


class KeyTable:
    """The copy of one process, which `run` keeps current."""

    def __init__(
        self,
        client: RedisClient,
        path: Path | None,
        *,
        start_with_copy: bool = True,
        run: Callable[..., Awaitable[Any]] = trio.to_thread.run_sync,
    ) -> None:
        """`path`: the copy on the disk; `start_with_copy`: use it until the server has been read; `run` runs
        blocking calls."""
        self.keys: tuple[ApiKey, ...] = ()
        self.loaded = trio.Event()
        """Set once there are keys of the server, or of the copy."""
        self._client = client
        self._key = f"{client.prefix}:{{keys}}"
        self._path = path
        self._run = run
        self._version = -1
        """As of the last read; negative before the first one."""
        self._known_version = 0
        """The highest one that was ever read."""
        self._installation = secrets.token_hex(8)
        if path is not None:
            self._read_copy(path, use=start_with_copy)

    def __repr__(self) -> str:
        return f"<KeyTable {len(self.keys)} keys, version {self._version}>"

    async def run(self, subscriber: Subscriber) -> None:
        """Follow the changes of all processes until cancelled."""
        subscription = subscriber.subscribe(CHANNEL)
        stale = True
        await self._client.wait_connected()
        while True:
            changes = await subscription.wait()
            stale = stale or changes.everything or bool(changes.messages)
            try:
                if stale or await self._read_version() != self._version:
                    await self.read()
                stale = False
            except RedisError as error:  # the client reports why
                log.debug("cannot read API keys: %s", error)

    async def wait_loaded(self) -> None:
        """Wait for the first keys, a moment at most: a server starts without them, too."""
        with trio.move_on_after(self._client.timeout):
            await self.loaded.wait()

    async def read(self) -> None:
        """Read all keys; give back what the server has lost. Raises a RedisError."""
        fields = _to_mapping(await self._client.request("HGETALL", self._key))
        version, installation = _version(fields.pop(VERSION, b"0")), fields.pop(INSTALLATION, b"").decode()
        if installation and installation != self._installation:
            if self._known_version:
                log.warning("the API keys in shared_state are those of another installation; using those")
            self._installation, self._known_version, self.keys = installation, 0, ()
        elif version < self._known_version:
            log.warning("shared_state has lost API keys (version %d of %d)", version, self._known_version)
            await self._merge(ANY_VERSION, self.keys)
            await self.read()
            return
        changed = version != self._version
        self._version = self._known_version = version
        self.keys = tuple(sorted(_parse(fields), key=lambda key: (key.created, key.id)))
        self.loaded.set()
        if changed:
            await self._write_copy()

    async def change(self, change: Change) -> None:
        """Add the records of a change, or find that they are there. Raises ApiKeyStoreError."""
        records: list[ApiKey] = []
        sent = False
        with trio.move_on_after(CHANGE_TIMEOUT):
            while True:
                try:
                    if sent or self._version < 0:
                        await self.read()
                    if sent and all(record in self.keys for record in records):
                        return
                    records = change(self.keys)
                    await self._merge(self._version, records)
                    sent = True
                except RedisError as error:
                    sent = sent or isinstance(error, OutcomeUnknown)
                    if not sent:
                        raise ApiKeyStoreError(f"shared_state cannot be used: {error}.") from None
                    await trio.sleep(RETRY_PAUSE)
        raise ApiKeyStoreBusy("shared_state does not confirm the change: check in a moment.")

    async def merge(self, keys: Sequence[ApiKey]) -> int:
        """Add keys as they are, and return how many were not known yet. Raises ApiKeyStoreError."""
        new: list[ApiKey] = []

        def select(present: Sequence[ApiKey]) -> list[ApiKey]:
            new[:] = api_keys.select_new(present, keys)
            return new

        await self.change(select)
        return len(new)

    async def _read_version(self) -> int:
        return _version(await self._client.request("HGET", self._key, VERSION))

    async def _merge(self, expected: int, keys: Sequence[ApiKey]) -> None:
        """Add records if the version is the expected one; twice is once. Raises a RedisError."""
        records = [item for key in keys for item in (key.id, json_codec.dumps(api_keys.to_json(key)))]
        channel = f"{self._client.prefix}:{CHANNEL}"
        arguments = (channel, expected, self._installation, self._known_version, *records)
        command = self._client.script_command(API_KEYS, self._key, *arguments)
        await self._client.request(*command)

    def _read_copy(self, path: Path, *, use: bool) -> None:
        try:
            copy = json_codec.loads(path.read_bytes())
            keys = tuple(api_keys.from_json(entry) for entry in copy["keys"])
            self._known_version, self._installation = int(copy[VERSION]), str(copy[INSTALLATION])
        except FileNotFoundError:
            return
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("cannot read the copy of API keys: %s: %s", path, error)
            return
        self.keys = keys
        if use:
            self.loaded.set()

    async def _write_copy(self) -> None:
        if self._path is None:
            return
        copy = {VERSION: self._version, INSTALLATION: self._installation}
        data = json_codec.dumps({**copy, "keys": [api_keys.to_json(key) for key in self.keys]})
        try:
            await self._run(replace_private_file, self._path, data)
        except OSError as error:
            log.warning("cannot write the copy of API keys: %s: %s", self._path, error.strerror)


def _to_mapping(reply: Any) -> dict[str, bytes]:
    return {name.decode(): value for name, value in zip(reply[::2], reply[1::2], strict=True)}


def _version(reply: bytes | None) -> int:
    return int(reply or 0)


def _parse(fields: Mapping[str, bytes]) -> list[ApiKey]:
    """Return the records; one that this version cannot read is left out."""
    keys = []
    for name, record in fields.items():
        try:
            keys.append(api_keys.from_json(json_codec.loads(record)))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            log.warning("the API key %s in shared_state cannot be read, and is not accepted: %s", name, error)
    return keys
