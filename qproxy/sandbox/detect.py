"""This machine's sandbox, looked for once, when it is first needed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from qproxy.sandbox.bubblewrap import Bubblewrap, Refusal, find
from qproxy.sandbox.policy import Fence
from qproxy.sandbox.process import Child, Starter


class Site:
    """A `Starter` that is bubblewrap where it works, and a refusal where it does not."""

    def __init__(self, look: Callable[[], Awaitable[Bubblewrap | Refusal]] = find) -> None:
        self._look = look
        self._found: Starter | Refusal | None = None

    def __repr__(self) -> str:
        return f"<Site {self._found!r}>"

    @property
    def refusal(self) -> str | None:
        """Why there is no sandbox, once that is known."""
        return f"no sandbox can be made: {self._found}" if isinstance(self._found, Refusal) else None

    async def look(self) -> Starter | Refusal:
        """What was found, now or before."""
        if self._found is None:
            self._found = await self._look()
        return self._found

    def __call__(self, argv: Sequence[str], fence: Fence, /) -> AbstractAsyncContextManager[Child]:
        return self._started(argv, fence)

    @asynccontextmanager
    async def _started(self, argv: Sequence[str], fence: Fence) -> AsyncIterator[Child]:
        async with (await self.look())(argv, fence) as child:
            yield child
