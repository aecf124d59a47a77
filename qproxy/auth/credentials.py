"""Credentials of requests: a token and a base URL."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Credential:
    """The credential of one request."""

    token: str | None = field(repr=False)
    """The bearer token; None for a server without authentication."""
    base_url: str
    """The API base without a trailing slash, e.g. `https://host/compatible-mode/v1`."""
    generation: int = 0
    """Increases with each new token, so that one rejected token causes one refresh."""


class CredentialSource(Protocol):
    """The source of an account's credentials, called once per request: they may change between requests."""

    async def credential(self) -> Credential:
        """Return the current credential, after a refresh in progress. Raises UpstreamError if there is
        none."""
        ...

    async def report_rejected(self, credential: Credential, why: str = "") -> bool:
        """Report that the upstream rejected this credential; return whether a newer one is available."""
        ...

    def report_accepted(self, credential: Credential) -> None:
        """Report that the upstream accepted this credential."""
        ...


@dataclass(frozen=True, slots=True)
class StaticKey:
    """An API key (or none) for a fixed base URL."""

    base_url: str
    key: str | None = field(default=None, repr=False)

    async def credential(self) -> Credential:
        return Credential(self.key, self.base_url)

    async def report_rejected(self, credential: Credential, why: str = "") -> bool:
        return False

    def report_accepted(self, credential: Credential) -> None:
        pass
