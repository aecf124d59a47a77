"""The server's clock as this process knows it, from the times in replies.

A reply shows that the server's clock had its time between the command and the reply. The offset stays while
it is possible: so a time that is converted twice is the same, and the clock of this machine may be set.
"""

from __future__ import annotations


class ServerClock:
    """The offset of the server's clock from this machine's wall clock."""

    def __init__(self) -> None:
        self.offset = 0.0
        """Seconds that the server is ahead."""
        self.is_known = False

    def __repr__(self) -> str:
        return f"<ServerClock {self.offset:+.3f} s>"

    def observe(self, sent_at: float, server_time: float, received_at: float) -> None:
        """Correct the offset by a reply; the first and the last time are those of the wall clock."""
        self.is_known = True
        lowest, highest = server_time - received_at, server_time - sent_at
        if not lowest <= self.offset <= highest:
            self.offset = (lowest + highest) / 2
