"""Background tasks of a server's accounts: a token refresh task per login, and logins in progress.

They run in one nursery that belongs to the app, and start and end with it. A reload changes the accounts; the
tasks of accounts that remain continue undisturbed.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Protocol, runtime_checkable

import trio

from qproxy.auth.supervised_task import SupervisedTask


@runtime_checkable
class RefreshedSource(Protocol):
    """A credential source that needs a task."""

    name: str

    async def run(self) -> None: ...


class RefreshTasks:
    """The nursery of refresh tasks and logins."""

    def __init__(self) -> None:
        self._sources: list[RefreshedSource] = []
        self._running: dict[RefreshedSource, trio.CancelScope] = {}
        self._nursery: trio.Nursery | None = None
        self._stopped = trio.Event()
        self.tasks: dict[str, SupervisedTask] = {}
        """Tasks by account name."""

    def __repr__(self) -> str:
        return f"<RefreshTasks {len(self._running)} accounts>"

    async def run(self) -> None:
        """Run the tasks until stopped."""
        self._stopped = trio.Event()
        try:
            async with trio.open_nursery() as self._nursery:
                self._reconcile()
                await trio.sleep_forever()
        finally:
            self._nursery = None
            self._running.clear()
            self._stopped.set()

    async def stop(self) -> None:
        """End the tasks and wait for them: a refresh in progress is completed."""
        if self._nursery is not None:
            self._nursery.cancel_scope.cancel()
            await self._stopped.wait()

    def set_sources(self, sources: Iterable[Any]) -> None:
        """Replace the sources that have a task."""
        self._sources = [source for source in sources if isinstance(source, RefreshedSource)]
        self._reconcile()

    def start_soon(self, task: Callable[..., Awaitable[Any]], *arguments: Any) -> None:
        """Run a task in the nursery. Raises RuntimeError if the server is not running."""
        if self._nursery is None:
            raise RuntimeError("the server is not running")
        self._nursery.start_soon(task, *arguments)

    def _reconcile(self) -> None:
        if self._nursery is None:
            return
        for source in [source for source in self._running if source not in self._sources]:
            self._running.pop(source).cancel()
            self.tasks.pop(source.name, None)
        for source in self._sources:
            if source not in self._running:
                self._running[source] = scope = trio.CancelScope()
                self.tasks[source.name] = task = SupervisedTask(
                    f"Token refresh task for account {source.name}", source.run
                )
                self._nursery.start_soon(self._run_until_stopped, scope, task)

    async def _run_until_stopped(self, scope: trio.CancelScope, task: SupervisedTask) -> None:
        with scope:
            await task.run()
