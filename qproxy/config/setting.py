"""The declaration of a setting: a field with its help."""

from __future__ import annotations

from dataclasses import field
from typing import Any, Literal


def setting(default: Any, help: str, *, secret: bool | Literal["url"] = False) -> Any:
    """Declare a setting; a secret one, or the URL's secrets, are hidden from reprs and logs."""
    metadata = {"help": help, "secret": secret}
    if isinstance(default, dict | list | tuple):
        return field(default_factory=lambda: default, metadata=metadata, repr=not secret)
    return field(default=default, metadata=metadata, repr=not secret)
