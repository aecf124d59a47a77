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

from qproxy.wire.errors import OverloadedError, QproxyError


class InFlightRequest:
    """One request."""

    def __init__(self, timeout: float = math.inf) -> None:
        self._timeout = timeout
        self.deadline = trio.current_time() + timeout
        self._error: QproxyError | None = None
        self._callback: Callable[[], object] | None = None

    def __repr__(self) -> str:
        return f"<Life until {self.deadline:.0f}{', ended' if self._error else ''}>"

    def end(self, error: QproxyError) -> None:
        """Answer the request with this error, as soon as it can be said."""
        self._error = error
        if self._callback is not None:
            self._callback()

    def error(self) -> QproxyError | None:
        """The error to end with, once there is one."""
        if self._error is None and trio.current_time() >= self.deadline:
            message = f"The request took longer than the {self._timeout:g} s that this server allows."
            return QproxyError(message, status=504, code="request_timeout")
        return self._error

    def on_end(self, wake: Callable[[], object]) -> None:
        """What to call when the life is ended from outside."""
        self._callback = wake

    @contextmanager
    def deadline_scope(self) -> Iterator[None]:
        """Cancel the block when the life is over, and raise the error that says why."""
        with trio.CancelScope(deadline=self.deadline) as scope:
            self.on_end(scope.cancel)
            if self._error is not None:
                scope.cancel()
            yield
        self._callback = None
        error = self.error() if scope.cancelled_caught else None
        if error is not None:
            raise error


class InFlightRequests:
    """All requests under way."""

    def __init__(self) -> None:
        self._requests: set[InFlightRequest] = set()
        self._ended = False

    def __repr__(self) -> str:
        return f"<Lives {len(self._requests)}>"

    def __len__(self) -> int:
        return len(self._requests)

    def add(self, stack: AsyncExitStack, timeout: float = math.inf) -> InFlightRequest:
        """A life that lasts as long as the stack."""
        in_flight = InFlightRequest(timeout)
        if self._ended:  # a request on a connection that was open
            in_flight.end(_stopping())
        self._requests.add(in_flight)
        stack.callback(self._requests.remove, in_flight)
        return in_flight

    def end(self) -> None:
        """End them all, and those that come later: the server stops."""
        self._ended = True
        for in_flight in self._requests:
            in_flight.end(_stopping())


def _stopping() -> QproxyError:
    return OverloadedError("The server is stopping.", code="shutting_down", retry_after=1)
