"""This machine's sandbox, looked for once, when it is first needed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from qproxy.sandbox.bubblewrap import Bubblewrap, SandboxUnavailable, find_bubblewrap
from qproxy.sandbox.policy import SandboxPolicy
from qproxy.sandbox.process import ChildProcess, Launcher


class SystemSandbox:
    """A `Launcher` that is bubblewrap where it works, and a refusal where it does not."""

    def __init__(
        self, look: Callable[[], Awaitable[Bubblewrap | SandboxUnavailable]] = find_bubblewrap
    ) -> None:
        self._detect = look
        self._launcher: Launcher | SandboxUnavailable | None = None

    def __repr__(self) -> str:
        return f"<Site {self._launcher!r}>"

    @property
    def unavailable_reason(self) -> str | None:
        """Why there is no sandbox, once that is known."""
        return (
            f"no sandbox can be made: {self._launcher}"
            if isinstance(self._launcher, SandboxUnavailable)
            else None
        )

    async def detect(self) -> Launcher | SandboxUnavailable:
        """What was found, now or before."""
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
