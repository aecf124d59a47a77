"""Counts of a client's commands, for the metrics."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Statistics:
    """Commands by outcome, over all connections of a client."""

    ok: int = 0
    error: int = 0
    """Replied to with an error."""
    unknown: int = 0
    """Sent without a reply."""
    unavailable: int = 0
    """Not sent, for want of a connection."""
    seconds: float = 0.0
    """Between commands and their replies."""

    def outcomes(self) -> dict[str, int]:
        """Return the numbers of commands."""
        return {
            "ok": self.ok, "error": self.error, "unknown": self.unknown, "unavailable": self.unavailable,
        }  # fmt: skip
