"""The requests in flight, so that each can be ended with an error: at its own time limit, or when the server
stops.

An `InFlightRequest` lasts from a request's first byte to its last. Until the response's head is sent it is a
cancel scope around the handler, which ends in an error response; after that it interrupts the pull that is
waiting, which ends in an error event. No response is cut off without one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager

import trio

from qproxy.wire.errors import OverloadedError, QproxyError


class InFlightRequest:
    """A request that has not finished."""

    def __init__(self, seconds: float, setting: str) -> None:
        """`setting` is the name of the time limit, for the error."""
        self._seconds = seconds
        self._setting = setting
        self.deadline = trio.current_time() + seconds
        self._error: QproxyError | None = None
        self._callback: Callable[[], object] | None = None

    def __repr__(self) -> str:
        return f"<InFlightRequest until {self.deadline:.0f}{', ended' if self._error else ''}>"

    def end(self, error: QproxyError) -> None:
        """End the request with this error as soon as it can be sent."""
        self._error = error
        if self._callback is not None:
            self._callback()

    def error(self) -> QproxyError | None:
        """Return the error to end with; None while the request may continue."""
        if self._error is None and trio.current_time() >= self.deadline:
            message = f"The request took longer than {self._seconds:g} s ({self._setting})."
            return QproxyError(message, status=504, code="request_timeout")
        return self._error

    def on_end(self, callback: Callable[[], object]) -> None:
        """Call this when `end` is called."""
        self._callback = callback

    @contextmanager
    def deadline_scope(self) -> Iterator[None]:
        """Cancel the block when the request is ended or its time is up, and raise the error."""
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
    """All requests in flight."""

    def __init__(self) -> None:
        self._requests: set[InFlightRequest] = set()
        self._ended = False
        self.draining = False
        """Whether the server is shutting down; clients should not send new requests."""
        self.drain_started = trio.Event()

    def __repr__(self) -> str:
        return f"<InFlightRequests {len(self._requests)}>"

    def __len__(self) -> int:
        return len(self._requests)

    def add(self, stack: AsyncExitStack, seconds: float, setting: str) -> InFlightRequest:
        """Return a request that is in flight until the stack closes, for at most the seconds of a setting."""
        in_flight = InFlightRequest(seconds, setting)
        if self._ended:  # a request on a connection that was still open
            in_flight.end(shutting_down_error())
        self._requests.add(in_flight)
        stack.callback(self._requests.remove, in_flight)
        return in_flight

    def drain(self) -> None:
        """Report from now on that the server is shutting down."""
        self.draining = True
        self.drain_started.set()

    def end(self) -> None:
        """End all requests, and those that are still to come."""
        self._ended = True
        for in_flight in self._requests:
            in_flight.end(shutting_down_error())


def shutting_down_error() -> QproxyError:
    """Return the error that ends what is in progress when the server stops."""
    return OverloadedError("The server is shutting down.", code="shutting_down", retry_after=1)
