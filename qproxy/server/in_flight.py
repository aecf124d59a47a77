"""The requests under way, so that each can be ended with a word: its own time limit, or the server's end.

A `Life` begins with a request and is over with its last byte.  Until the answer's head is out it is a cancel scope
around the handler, whose end is an error response; after that it is an interruption of the pull that waits, whose
end is an error frame.  Nobody is cut off in silence.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager

import trio

from qproxy.wire.errors import Overloaded, QproxyError


class Life:
    """One request."""

    def __init__(self, timeout: float = math.inf) -> None:
        self._timeout = timeout
        self.deadline = trio.current_time() + timeout
        self._ended: QproxyError | None = None
        self._wake: Callable[[], object] | None = None

    def __repr__(self) -> str:
        return f"<Life until {self.deadline:.0f}{', ended' if self._ended else ''}>"

    def end(self, error: QproxyError) -> None:
        """Answer the request with this error, as soon as it can be said."""
        self._ended = error
        if self._wake is not None:
            self._wake()

    def over(self) -> QproxyError | None:
        """The error to end with, once there is one."""
        if self._ended is None and trio.current_time() >= self.deadline:
            message = f"The request took longer than the {self._timeout:g} s that this server allows."
            return QproxyError(message, status=504, code="request_timeout")
        return self._ended

    def wakes(self, wake: Callable[[], object]) -> None:
        """What to call when the life is ended from outside."""
        self._wake = wake

    @contextmanager
    def limited(self) -> Iterator[None]:
        """Cancel the block when the life is over, and raise the error that says why."""
        with trio.CancelScope(deadline=self.deadline) as scope:
            self.wakes(scope.cancel)
            if self._ended is not None:
                scope.cancel()
            yield
        self._wake = None
        error = self.over() if scope.cancelled_caught else None
        if error is not None:
            raise error


class Lives:
    """All requests under way."""

    def __init__(self) -> None:
        self._lives: set[Life] = set()
        self._ended = False

    def __repr__(self) -> str:
        return f"<Lives {len(self._lives)}>"

    def __len__(self) -> int:
        return len(self._lives)

    def one(self, stack: AsyncExitStack, timeout: float = math.inf) -> Life:
        """A life that lasts as long as the stack."""
        life = Life(timeout)
        if self._ended:  # a request on a connection that was open
            life.end(_stopping())
        self._lives.add(life)
        stack.callback(self._lives.remove, life)
        return life

    def end(self) -> None:
        """End them all, and those that come later: the server stops."""
        self._ended = True
        for life in self._lives:
            life.end(_stopping())


def _stopping() -> QproxyError:
    return Overloaded("The server is stopping.", code="shutting_down", retry_after=1)
