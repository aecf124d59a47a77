"""The declaration of a setting: a field with its help."""

from __future__ import annotations

from dataclasses import field, is_dataclass
from typing import Any, Literal, get_args, get_origin


def setting(default: Any, help: str, *, secret: bool | Literal["url"] = False) -> Any:
    """Declare a setting; a secret one, or the URL's secrets, are hidden from reprs and logs."""
    metadata = {"help": help, "secret": secret}
    if isinstance(default, dict | list | tuple):
        return field(default_factory=lambda: default, metadata=metadata, repr=not secret)
    return field(default=default, metadata=metadata, repr=not secret)


def record_type(kind: Any) -> Any:
    """Return the record type of an array of tables, or None for any other type."""
    arguments = get_args(kind)
    return arguments[0] if get_origin(kind) is tuple and is_dataclass(arguments[0]) else None
