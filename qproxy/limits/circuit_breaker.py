"""A circuit breaker per account: a server that fails again and again is not used for a while.

Closed, it counts consecutive requests that failed, each once, however often it was attempted. At `THRESHOLD`
it opens: requests use other accounts, or fail at once with the reason instead of waiting for one more
timeout. After a pause, which doubles, one request at a time may be sent (half-open): its success closes the
circuit. A probe whose client disconnects decides nothing, and another one may follow after the pause.

No clock, no I/O. Any response counts as success, even a rejection or a 500: this is about servers that are
down, not about quota, nor about a request that a server fails on (llama.cpp has a 500 for those), which would
otherwise stop every client's.
"""

from __future__ import annotations

from qproxy.wire.errors import QproxyError, RetryHint, UpstreamError

THRESHOLD = 5
FIRST_PAUSE = 1.0
MAX_PAUSE = 30.0


def is_outage(error: QproxyError) -> bool:
    """Return whether an error means that the server, or the network to it, is down."""
    if error.status < 500 or (isinstance(error, UpstreamError) and error.server_responded):
        return False
    return error.retry in (RetryHint.SOON, RetryHint.ONCE) or error.code == "upstream_timeout"


class CircuitBreaker:
    """The circuit breaker of one account."""

    def __init__(self) -> None:
        self.failures = 0
        """Consecutive failures."""
        self._open_until = 0.0
        self._probing = False

    def __repr__(self) -> str:
        return f"<CircuitBreaker {self.failures} failures>"

    def state(self, now: float) -> str:
        """Return closed, open or half-open."""
        if self.failures < THRESHOLD:
            return "closed"
        return "open" if now < self._open_until else "half-open"

    def wait(self, now: float) -> float:
        """Return the seconds until a request may be sent."""
        return 0.0 if self.failures < THRESHOLD else max(0.0, self._open_until - now)

    def before_request(self, now: float) -> None:
        """Record that a request is sent; a half-open circuit allows no other one until the pause ends."""
        if self.failures >= THRESHOLD:
            self._probing = True
            self._open_until = now + self._open_seconds()

    def record_result(self, error: QproxyError | None, now: float, *, again: bool = False) -> None:
        """Record the result of a request: a response (None) or an error; `again` if it has failed here
        before."""
        if error is None or not is_outage(error):
            self.failures, self._probing = 0, False
        elif self._probing if self.failures >= THRESHOLD else not again:
            # requests in flight when it opened say nothing new
            self.failures += 1
            self._probing = False
            self._open_until = now + self._open_seconds()

    @property
    def open_until(self) -> float:
        """Return when a request may be sent, 0 while it is closed."""
        return 0.0 if self.failures < THRESHOLD else self._open_until

    def follow(self, failures: int, open_until: float) -> None:
        """Take over what another process has found; no failure means that it closed."""
        self.failures, self._open_until, self._probing = failures, open_until, False

    def _open_seconds(self) -> float:
        return min(FIRST_PAUSE * 2.0 ** min(self.failures - THRESHOLD, 10), MAX_PAUSE)
