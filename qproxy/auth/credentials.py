"""What a request asks for: the token and the base URL to speak with."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Credential:
    """What one request needs to speak as an account."""

    token: str | None = field(repr=False)
    """The bearer token; None for an open server that wants none."""
    base_url: str
    """The API base without a trailing slash, e.g. `https://host/compatible-mode/v1`."""
    generation: int = 0
    """Counts up with each new token, so that one refused token causes one refresh."""


class CredentialSource(Protocol):
    """Asked once per request for the token and the base URL: both may change between two requests."""

    async def credential(self) -> Credential:
        """The current credential; waits for a refresh in flight.  Raises `UpstreamError` when there is none."""
        ...

    async def report_rejected(self, credential: Credential, why: str = "") -> bool:
        """The upstream answered 401 to this credential, in these words.  True when a newer one is to be had now."""
        ...

    def report_accepted(self, credential: Credential) -> None:
        """The upstream has let this credential in."""
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
