"""When a worker that died begins anew: at once after a long life, ever later after short ones."""

from __future__ import annotations

LONG = 30.0
"""Seconds of a life after which the death before it is forgotten."""
FIRST = 0.5
LONGEST = 30.0


class Backoff:
    """Of one worker.  No clock: whoever asks says how long it lived."""

    def __init__(self) -> None:
        self._short = 0

    def after(self, lived: float) -> float:
        """Seconds to wait after a life of so many."""
        if lived >= LONG:
            self._short = 0
            return 0.0
        self._short += 1
        return float(min(LONGEST, FIRST * 2 ** min(self._short - 1, 10)))
