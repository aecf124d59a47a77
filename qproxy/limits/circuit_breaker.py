"""A circuit per account: a server that fails again and again is left alone for a while.

Closed, it counts requests that failed in a row, each once, however often it was tried.  At `THRESHOLD` it opens: requests go elsewhere, or hear at once what is wrong
instead of waiting for one more time-out.  After a pause, which doubles, one request at a time may try (half-open): its
success closes the circuit.  A probe whose client leaves says nothing, and another one may follow after the pause.

No clock, no I/O.  Any answer counts as success, also a refusal and a 500: this is about servers that are down, not about quota, nor
about a request that a server chokes on (llama.cpp has a 500 for those), which would else stop everybody's.
"""

from __future__ import annotations

from qproxy.wire.errors import QproxyError, RetryHint, UpstreamError

THRESHOLD = 5
FIRST_PAUSE = 1.0
MAX_PAUSE = 30.0


def is_outage(error: QproxyError) -> bool:
    """Whether an error says that the server, or the way to it, is broken."""
    if error.status < 500 or (isinstance(error, UpstreamError) and error.server_responded):
        return False
    return error.retry in (RetryHint.SOON, RetryHint.ONCE) or error.code == "upstream_timeout"


class CircuitBreaker:
    """Of one account."""

    def __init__(self) -> None:
        self.failures = 0
        """In a row."""
        self._open_until = 0.0
        self._probing = False

    def __repr__(self) -> str:
        return f"<Circuit {self.failures} failures>"

    def state(self, now: float) -> str:
        """closed, open or half-open."""
        if self.failures < THRESHOLD:
            return "closed"
        return "open" if now < self._open_until else "half-open"

    def wait(self, now: float) -> float:
        """Seconds until a request may go through."""
        return 0.0 if self.failures < THRESHOLD else max(0.0, self._open_until - now)

    def before_request(self, now: float) -> None:
        """A request goes through; a half-open circuit lets no other one until the pause is over."""
        if self.failures >= THRESHOLD:
            self._probing = True
            self._open_until = now + self._open_seconds()

    def record_result(self, error: QproxyError | None, now: float, *, again: bool = False) -> None:
        """How a request ended: with an answer (None) or with an error; `again`: one that has failed here before."""
        if error is None or not is_outage(error):
            self.failures, self._probing = 0, False
        elif self._probing if self.failures >= THRESHOLD else not again:
            # those that were under way when it opened say nothing new
            self.failures += 1
            self._probing = False
            self._open_until = now + self._open_seconds()

    def _open_seconds(self) -> float:
        return min(FIRST_PAUSE * 2.0 ** min(self.failures - THRESHOLD, 10), MAX_PAUSE)
