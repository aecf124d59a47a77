"""Logins in progress, which each process runs and all processes of all machines can read and cancel.

The process that runs a login writes its progress each second, and reads whether it is to be cancelled; a
message makes it do so at once. A record that is not written any more is gone within seconds: its process has
ended, and with it the login. Without the server a login is one of its process alone.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import trio

from qproxy.auth.device_flow import LoginProgress
from qproxy.auth.login_sessions import LoginSessions
from qproxy.auth.oauth_source import OAuthSource
from qproxy.backends.redis.client import RedisClient
from qproxy.backends.redis.connection import Argument
from qproxy.backends.redis.errors import RedisError
from qproxy.backends.redis.script import Script, load_script
from qproxy.backends.redis.subscriber import Subscriber
from qproxy.wire import json_codec

LOGINS = load_script("logins")
CHANNEL = "logins"
LIVE_SECONDS = 15
"""After which a login whose process does not write its progress is gone."""
RETENTION_SECONDS = 300
"""In which a finished login can be read, as in the process that ran it."""
STARTING = LoginProgress("starting", "Requesting a code from the identity server.")
ATTACH_SECONDS = 30.0
"""Maximum seconds to wait for the code, or for the end, of a login of another process."""
POLL_SECONDS = 0.2
log = logging.getLogger("qproxy.auth")


class RedisLoginSessions:
    """The logins of all processes, by account."""

    def __init__(self, client: RedisClient, local: LoginSessions, *, script: Script = LOGINS) -> None:
        """`local` runs the logins of this process."""
        self._client = client
        self._local = local
        self._script = script
        self._own: set[str] = set()
        """Accounts whose login runs here."""

    def __repr__(self) -> str:
        return f"<RedisLoginSessions {self._local!r}>"

    async def run(self, subscriber: Subscriber) -> None:
        """Publish the logins of this process until cancelled."""
        subscription = subscriber.subscribe(CHANNEL)
        while True:
            await subscription.wait()
            for name in tuple(self._own):
                await self._publish(name)

    async def start(self, source: OAuthSource) -> tuple[LoginProgress, bool]:
        name = source.name
        local = await self._local.progress(name)
        if local is None or local.finished:
            try:
                claimed = await self._request(name, "start", self._owner(name), _dump(STARTING), LIVE_SECONDS)
            except RedisError as error:
                log.warning("account %s: only this process knows of the login: %s", name, error)
                claimed = 1
            if not claimed:
                return await self._wait(name, lambda progress: progress.state != "starting"), False
        self._own.add(name)
        try:
            return await self._local.start(source)
        finally:
            await self._publish(name)

    async def progress(self, name: str) -> LoginProgress | None:
        local = await self._local.progress(name)
        if local is not None and not local.finished:
            return local
        return await self._read(name, "read") or local

    async def cancel(self, name: str) -> LoginProgress | None:
        local = await self._local.progress(name)
        if local is not None and not local.finished:
            cancelled = await self._local.cancel(name)
            await self._publish(name)
            return cancelled
        channel = f"{self._client.prefix}:{CHANNEL}"
        if await self._read(name, "cancel", channel, self._key(name)) is None:
            return local
        return await self._wait(name, lambda progress: progress.finished)

    async def _publish(self, name: str) -> None:
        """Write the progress of a login of this process, and cancel it if another one asks for that."""
        progress = await self._local.progress(name)
        if progress is None:
            progress = replace(STARTING, state="failed", message="The login could not be started.")
        seconds = RETENTION_SECONDS if progress.finished else LIVE_SECONDS
        arguments = (self._owner(name), _dump(progress), seconds, int(progress.finished))
        try:
            cancelled = await self._request(name, "write", *arguments)
        except RedisError:  # the client reports why
            return
        if progress.finished:
            self._own.discard(name)
        elif cancelled:
            await self._local.cancel(name)
            await self._publish(name)

    async def _wait(self, name: str, condition: Callable[[LoginProgress], bool]) -> LoginProgress:
        """Return the progress of another process's login once the condition holds."""
        progress = STARTING
        with trio.move_on_after(ATTACH_SECONDS):
            while True:
                found = await self._read(name, "read")
                if found is None:
                    return replace(progress, state="failed", message="The process of this login has ended.")
                progress = found
                if condition(progress):
                    break
                await trio.sleep(POLL_SECONDS)
        return progress

    async def _read(self, name: str, operation: str, *arguments: Argument) -> LoginProgress | None:
        """Return the progress of an account's login in any process; None if there is none."""
        try:
            record, age = await self._request(name, operation, *(arguments or ("",)))
        except RedisError:
            return None
        if not record:
            return None
        progress = LoginProgress(**json_codec.loads(record))
        return replace(progress, seconds_left=max(0.0, progress.seconds_left - age / 1000))

    async def _request(self, name: str, *arguments: Argument) -> Any:
        return await self._client.run_script(self._script, self._key(name), *arguments)

    def _key(self, name: str) -> str:
        return f"{self._client.prefix}:{{login:{hashlib.sha256(name.encode()).hexdigest()[:32]}}}"

    def _owner(self, name: str) -> str:
        return f"{self._client.process}:{name}"


def _dump(progress: LoginProgress) -> bytes:
    return json_codec.dumps(asdict(progress))
