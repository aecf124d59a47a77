"""The interface of the logins that a server runs: one at a time for each account, and not many at once.

Starting a second login of an account attaches to the one in progress; a finished one can be read for a while.
A login belongs to the server, not to the request that started it.
"""

from __future__ import annotations

from typing import Protocol

from qproxy.auth.device_flow import LoginProgress
from qproxy.auth.oauth_source import OAuthSource


class LoginSessions(Protocol):
    """The logins of a server, by account."""

    async def start(self, source: OAuthSource) -> tuple[LoginProgress, bool]:
        """Return the account's login, once it has a code, and whether it is new. Raises OverloadedError."""
        ...

    async def progress(self, name: str) -> LoginProgress | None:
        """Return the progress of an account's login, in progress or recent; None if there is none."""
        ...

    async def cancel(self, name: str) -> LoginProgress | None:
        """Cancel an account's login, and return its progress."""
        ...
