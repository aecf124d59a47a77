"""This machine's sandbox, detected once on first use."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from qproxy.sandbox.bubblewrap import Bubblewrap, SandboxUnavailable, find_bubblewrap
from qproxy.sandbox.policy import SandboxPolicy
from qproxy.sandbox.process import ChildProcess, Launcher


class SystemSandbox:
    """A `Launcher` that uses bubblewrap if it works here, and raises SandboxUnavailable otherwise."""

    def __init__(
        self, look: Callable[[], Awaitable[Bubblewrap | SandboxUnavailable]] = find_bubblewrap
    ) -> None:
        self._detect = look
        self._launcher: Launcher | SandboxUnavailable | None = None

    def __repr__(self) -> str:
        return f"<SystemSandbox {self._launcher!r}>"

    @property
    def unavailable_reason(self) -> str | None:
        """The reason for which no sandbox is available, or None, also before the detection."""
        return (
            f"no sandbox is available: {self._launcher}"
            if isinstance(self._launcher, SandboxUnavailable)
            else None
        )

    async def detect(self) -> Launcher | SandboxUnavailable:
        """Return the launcher, detecting it on first use."""
        if self._launcher is None:
            self._launcher = await self._detect()
        return self._launcher

    def __call__(
        self, argv: Sequence[str], isolation: SandboxPolicy, /
    ) -> AbstractAsyncContextManager[ChildProcess]:
        return self._started(argv, isolation)

    @asynccontextmanager
    async def _started(self, argv: Sequence[str], isolation: SandboxPolicy) -> AsyncIterator[ChildProcess]:
        async with (await self.detect())(argv, isolation) as child:
            yield child
