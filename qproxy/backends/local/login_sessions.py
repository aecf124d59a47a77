"""The logins of one process, which run in the server's nursery beside its refresh tasks.

A finished login can be read for five minutes, and few run at once; qwen-code's daemon has the same rules.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

import trio

from qproxy.auth.background import RefreshTasks
from qproxy.auth.device_flow import DeviceFlow, LoginProgress
from qproxy.auth.oauth_source import OAuthSource
from qproxy.wire.errors import OverloadedError

MAX_CONCURRENT = 4
RETENTION_SECONDS = 300.0
log = logging.getLogger("qproxy.auth")


@dataclass(eq=False, slots=True)
class _Login:
    flow: DeviceFlow
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    finished: float = float("inf")
    """When it ended, by Trio's clock."""


class LocalLoginSessions:
    """The logins, by account."""

    def __init__(self, refresh_tasks: RefreshTasks) -> None:
        self._refresh_tasks = refresh_tasks
        self._logins: dict[str, _Login] = {}

    def __repr__(self) -> str:
        logins = ", ".join(f"{name}: {login.flow!r}" for name, login in self._logins.items())
        return f"<LocalLoginSessions {logins}>"

    async def start(self, source: OAuthSource) -> tuple[LoginProgress, bool]:
        login = self._find(source.name)
        new = login is None or login.flow.progress.finished
        if login is None or new:
            if sum(not other.flow.progress.finished for other in self._logins.values()) >= MAX_CONCURRENT:
                raise OverloadedError(
                    f"{MAX_CONCURRENT} logins are in progress, which is the maximum.", retry_after=5
                )
            login = self._logins[source.name] = _Login(source.start_login())
            self._refresh_tasks.start_soon(self._run, login, source)
        await login.flow.started.wait()
        return login.flow.progress, new

    async def progress(self, name: str) -> LoginProgress | None:
        login = self._find(name)
        return login.flow.progress if login is not None else None

    async def cancel(self, name: str) -> LoginProgress | None:
        login = self._find(name)
        if login is None:
            return None
        login.scope.cancel()
        await login.flow.finished.wait()
        return login.flow.progress

    def _find(self, name: str) -> _Login | None:
        now = trio.current_time()
        for other, login in list(self._logins.items()):
            if now - login.finished > RETENTION_SECONDS:
                del self._logins[other]
        return self._logins.get(name)

    async def _run(self, login: _Login, source: OAuthSource) -> None:
        log.info("account %s: login started", source.name)
        try:
            with login.scope:
                await login.flow.run()
        except Exception as error:  # a bug ends this login and nothing else
            log.error("account %s: login crashed", source.name, exc_info=error)
        finally:
            login.finished = trio.current_time()
        progress = login.flow.progress
        log.info("account %s: login finished: %s (%s)", source.name, progress.message, progress.state)
        source.reload()
