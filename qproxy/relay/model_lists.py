"""Upstreams' lists of models that processes share, so that one process asks an upstream and the others read.

`ModelListStore` is the interface, for `model_directory`. A list is a hint: a store that cannot be used makes
every process ask for itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from qproxy.wire.endpoints.models import Model


@dataclass(frozen=True, slots=True)
class SharedModelList:
    """The result of one process's request for an upstream's list."""

    models: tuple[Model, ...] | None
    """None if the upstream has no list."""
    is_failure: bool = False
    """Whether the list could not be fetched: nothing is known about the models."""


class ModelListStore(Protocol):
    """The lists of all processes, by the identity of an account. No method raises an error."""

    async def get_or_claim(self, identity: str, seconds: float) -> tuple[SharedModelList, float] | None:
        """Return a list and for how many seconds it is valid, waiting while another process fetches it.

        None if this process is to fetch it, within `seconds`, and to save the result.
        """
        ...

    async def save(self, identity: str, found: SharedModelList, seconds: float) -> None:
        """Share a list for some seconds."""
        ...
