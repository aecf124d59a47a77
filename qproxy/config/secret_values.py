"""The secrets among the settings: the values of the fields that a repr hides."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote, urlsplit


def secret_values(record: Any) -> Iterator[str]:
    """Yield the secrets of a record of settings, and of the records in it."""
    for item in dataclasses.fields(record):
        value = getattr(record, item.name)
        values = value if isinstance(value, list | tuple) else [value]
        for entry in values:
            if dataclasses.is_dataclass(entry):
                yield from secret_values(entry)
            elif not item.repr and isinstance(entry, dict):
                yield from entry.values()
            elif not item.repr and isinstance(entry, str):
                yield from url_secrets(entry) if item.metadata.get("secret") == "url" else (entry,)


def url_secrets(url: str) -> Iterator[str]:
    """Yield the secrets of a setting that may be a URL: its password, and itself if it has a login.

    A path has none, and an address alone is what errors name.
    """
    if "://" not in url:
        return
    parts = urlsplit(url)
    login, _, _ = parts.netloc.rpartition("@")
    passwords = [login.partition(":")[2], *re.findall(r"(?:^|&)password=([^&]++)", parts.query)]
    if login or any(passwords):
        yield url
    for password in filter(None, passwords):
        yield from {password, unquote(password)}
